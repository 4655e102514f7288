"""Language models by sequence and by token: the selection is that of plain loops, in every way of running it."""

import copy
import dataclasses
from collections import namedtuple
from contextlib import nullcontext
from functools import partial

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

import reducr
from language import (
    LENGTH,
    LOSSES,
    NUM_DOMAINS,
    VOCABULARY,
    Sequences,
    TinyLanguageModel,
    candidate_groups,
    inputs_of,
    make_parts,
    places_of,
    plain_losses,
    snapshot,
    train_on,
)
from reducr.batch import BatchSpec
from reducr.functional import TokenLoss
from reference.reducr_step import ReferenceOptions, reducr_step
from reference.tokens import by_token, token_losses

UNITS = ["sequence", "token"]
FRACTION, NUM_CANDIDATES, REFRESH_STEPS = 0.3, 15, 2
HOLDOUT = Sequences(12, seed=2, columns=("group",), has_empty=False)


def candidates_of(data=None, *, seed=3, **options):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data or Sequences(), batch_size=NUM_CANDIDATES, shuffle=True, generator=generator, **options)


def holdout_batches():
    return list(DataLoader(HOLDOUT, batch_size=5))


def make_loader(name, unit, *, data=None, **options):
    model, selector, reference = make_parts(name)
    needs_holdout = {"holdout": holdout_batches(), "refresh_steps": REFRESH_STEPS}
    loader = reducr.SelectiveLoader(
        candidates_of(data),
        model,
        selector,
        reference,
        FRACTION,
        loss=LOSSES[unit],
        **(needs_holdout if selector.needs_group_holdout_loss else {}) | options,
    )
    return loader, model, torch.optim.SGD(model.parameters(), lr=0.5)


def selected_of(batch, *, unit):
    """What was selected: example ids, or (example id, place) of tokens."""
    ids = batch["idx"].tolist()
    if unit == "sequence":
        return ids
    return {(ids[row], place) for row, place in places_of(batch)}


def holdout_means(model, *, unit):
    sums, counts = [0.0] * NUM_DOMAINS, [0] * NUM_DOMAINS
    for batch in holdout_batches():
        losses = plain_losses(model, batch, by_token=unit == "token")
        for group, loss in zip(candidate_groups(batch, by_token=unit == "token"), losses, strict=True):
            sums[group] += loss
            counts[group] += 1
    return [total / count for total, count in zip(sums, counts, strict=True)]


@pytest.mark.parametrize("unit", UNITS)
def test_a_training_by_reducr_is_that_of_plain_loops(unit):
    loader, model, optimizer = make_loader("reducr", unit)
    models = loader.downsampler.irreducible.reference.source.modules
    is_by_token, cumulative, holdout = unit == "token", [0.0] * NUM_DOMAINS, holdout_means(model, unit=unit)
    steps, counts = 0, [0] * NUM_DOMAINS
    for candidates, batch in zip(candidates_of(), loader, strict=True):
        losses = plain_losses(model, candidates, by_token=is_by_token)
        columns = [plain_losses(reference, candidates, by_token=is_by_token) for reference in models]
        expected = reducr_step(
            losses,
            list(zip(*columns, strict=True)),
            holdout,
            cumulative,
            num_selected=int(FRACTION * len(losses)),
            options=ReferenceOptions(step_size=0.05),
        )
        ids = candidates["idx"].tolist()
        if is_by_token:
            places = places_of(candidates)
            assert selected_of(batch, unit=unit) == {(ids[places[pick][0]], places[pick][1]) for pick in expected.picks}
            assert torch.equal(batch["input_ids"], candidates["input_ids"])
        else:
            assert selected_of(batch, unit=unit) == [ids[pick] for pick in expected.picks]
        assert loader.downsampler.selector.group_weights.tolist() == pytest.approx(expected.weights_used)
        groups = [candidate_groups(candidates, by_token=is_by_token)[pick] for pick in expected.picks]
        counts = [count + groups.count(group) for group, count in enumerate(counts)]
        assert loader.report().group_counts == counts
        train_on(model, batch, optimizer)
        cumulative, steps = expected.cumulative_payoff, steps + 1
        if steps % REFRESH_STEPS == 0:
            holdout = holdout_means(model, unit=unit)
    assert steps == 4
    assert loader.downsampler.selector.cumulative_payoff.tolist() == pytest.approx(cumulative)
    assert len(set(loader.downsampler.selector.group_weights.tolist())) == NUM_DOMAINS


@pytest.mark.parametrize("rule", ["rho_loss", "train_loss", "irreducible_loss"])
def test_tokens_are_those_of_plain_loops(rule):
    model, selector, reference = make_parts(rule, sampler="top_k")
    batch = next(iter(candidates_of()))
    core = reducr.Downsampler(selector, reference, fraction=FRACTION, loss=TokenLoss())
    core.prepare(model)
    selected = core.select(batch, model)

    def of(model):
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
        return token_losses(logits.tolist(), batch["labels"].tolist())

    losses, irreducible = of(model), of(reference.source.modules[0])
    nothing = [dict.fromkeys(places, 0.0) for places in losses]
    first, second = {
        "rho_loss": (losses, irreducible),
        "train_loss": (losses, nothing),
        "irreducible_loss": (nothing, irreducible),
    }[rule]
    assert set(places_of(selected)) == by_token(first, second, fraction=FRACTION)
    assert selected["labels"].shape == batch["labels"].shape
    kept = selected["labels"] != -100
    assert torch.equal(selected["labels"][kept], batch["labels"][kept])
    assert (batch["labels"] != -100).sum() > kept.sum()  # the candidates are as they were


def test_the_loss_of_the_loop_is_the_mean_over_the_selected_tokens():
    model, selector, reference = make_parts("rho_loss")
    batch = next(iter(candidates_of()))
    core = reducr.Downsampler(selector, reference, fraction=FRACTION, loss=TokenLoss())
    core.prepare(model)
    selected = core.select(batch, model)
    losses = dict(zip(places_of(batch), plain_losses(model, batch, by_token=True), strict=True))
    expected = [losses[place] for place in places_of(selected)]
    assert model(**inputs_of(selected)).loss.item() == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rule", ["rho_loss", "reducr", "priority_sampling", "uniform", "class_balanced", "drop"])
def test_rules_select_the_fraction_of_the_candidates(rule, unit):
    loader, model, optimizer = make_loader(rule, unit)
    total = 0
    for candidates, batch in zip(candidates_of(), loader, strict=True):
        size = len(candidate_groups(candidates, by_token=unit == "token"))
        total += size
        picked = selected_of(batch, unit=unit)
        assert len(picked) == len(set(picked)) == int(FRACTION * size)
        train_on(model, batch, optimizer)
    report = loader.report()
    assert (report.num_candidates, report.num_batches) == (total, 4)
    assert sum(report.group_counts) == report.num_selected


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rule", ["rho_loss", "reducr"])
def test_scores_in_chunks_are_those_at_once(rule, unit):
    """Padding is to the longest candidate in each chunk as well; lengths, and so masks, differ between chunks."""
    batch = next(iter(candidates_of()))
    selections = []
    for batch_size in (None, 1, 4, NUM_CANDIDATES):
        model, selector, reference = make_parts(rule)
        core = reducr.Downsampler(
            selector,
            reference,
            fraction=FRACTION,
            holdout=holdout_batches() if rule == "reducr" else None,
            loss=LOSSES[unit],
            scoring=reducr.Scoring(mode="eval", batch_size=batch_size),
        )
        core.prepare(model)
        core.select(batch, model)
        selections.append(core.selection)
    for selection in selections[1:]:
        torch.testing.assert_close(selection.scores, selections[0].scores, rtol=1e-12, atol=1e-12)
        assert torch.equal(selection.positions, selections[0].positions)


@pytest.mark.parametrize("unit", UNITS)
def test_padding_changes_nothing(unit):
    batch = next(iter(candidates_of()))
    more = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    padded = {
        name: torch.nn.functional.pad(value, (0, 5), value=more[name]) if name in more else value
        for name, value in batch.items()
    }
    chosen = []
    for candidates in (batch, padded):
        model, selector, reference = make_parts("rho_loss")
        core = reducr.Downsampler(selector, reference, fraction=FRACTION, loss=LOSSES[unit])
        core.prepare(model)
        chosen.append((core.select(candidates, model), core.selection))
    torch.testing.assert_close(chosen[0][1].scores, chosen[1][1].scores, rtol=1e-12, atol=1e-12)
    assert selected_of(chosen[0][0], unit=unit) == selected_of(
        {**chosen[1][0], "labels": chosen[1][0]["labels"][:, :LENGTH]}, unit=unit
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rule", ["reducr", "priority_sampling"])
def test_a_resumed_training_goes_on_exactly(rule, unit):
    def train(loader, model, optimizer, *, batches):
        picked = []
        for batch in loader:
            train_on(model, batch, optimizer)
            picked.append(selected_of(batch, unit=unit))
            if len(picked) == batches:
                break
        return picked

    loader, model, optimizer = make_loader(rule, unit)
    whole = train(loader, model, optimizer, batches=4)
    end = snapshot(model)

    loader, model, optimizer = make_loader(rule, unit)
    first = train(loader, model, optimizer, batches=2)
    state = copy.deepcopy({"loader": loader.state_dict(), "model": model.state_dict()})
    loader, model, optimizer = make_loader(rule, unit)
    model.load_state_dict(state["model"])
    loader.load_state_dict(state["loader"])
    rest = train(loader, model, optimizer, batches=2)
    assert first + rest == whole
    assert all(torch.equal(value, end[name]) for name, value in model.state_dict().items())


def test_accumulated_batches_make_one_step_by_token():
    loader, model, optimizer = make_loader("reducr", "token", accumulate_steps=2)
    for batch in loader:
        train_on(model, batch, optimizer)
    assert (loader.report().num_batches, loader.report().num_steps) == (4, 2)


Pair = namedtuple("Pair", ["input", "target", "group"])


@dataclasses.dataclass(frozen=True)
class Example:
    input: torch.Tensor
    target: torch.Tensor
    group: torch.Tensor


@pytest.mark.parametrize(
    ("make", "spec", "labels_of"),
    [
        (lambda x, y, g: (g, x, y, g), None, lambda batch: batch[2]),
        (lambda x, y, g: [g, x, y, g], None, lambda batch: batch[2]),
        (Pair, None, lambda batch: batch.target),
        (Example, None, lambda batch: batch.target),
        (reducr.Batch, None, lambda batch: batch.target),
        (
            lambda x, y, g: {"data": {"x": x, "more": (y, g)}},
            BatchSpec(input=("data", "x"), target=("data", "more", 0), group=("data", "more", 1)),
            lambda batch: batch["data"]["more"][0],
        ),
    ],
    ids=["tuple", "list", "named_tuple", "dataclass", "batch", "nested"],
)
def test_labels_are_masked_in_batches_of_any_structure(make, spec, labels_of):
    data = next(iter(candidates_of()))
    parts = data["input_ids"], data["labels"], data["group"]
    batch = reducr.Batch(data["idx"], *parts) if make is reducr.Batch else make(*parts)
    model, selector, _ = make_parts("train_loss")
    core = reducr.Downsampler(selector, fraction=FRACTION, loss=TokenLoss(), spec=spec)
    core.prepare(model)
    selected = core.select(batch, model)
    assert type(selected) is type(batch)
    labels = labels_of(selected)
    assert int((labels != -100).sum()) == int(FRACTION * len(places_of(data))) == core.selection.num_selected
    assert torch.equal(labels[labels != -100], data["labels"][labels != -100])
    assert torch.equal(labels_of(batch), data["labels"])


def test_what_a_selection_by_token_cannot_serve_is_refused_when_it_is_set_up():
    def make(rule="rho_loss", loss=None, irreducible=None, **options):
        _, selector, reference = make_parts(rule)
        return reducr.Downsampler(selector, irreducible or reference, loss=loss or TokenLoss(), **options)

    with pytest.raises(ValueError, match=r"serves rules that read losses and groups.*'entropy' reads logits"):
        make("entropy")
    with pytest.raises(ValueError, match="'group_dro' weights the loss of each example"):
        make("group_dro")
    with pytest.raises(ValueError, match=r"A scoring budget remembers one loss per example.*Leave `budget` out"):
        make(scoring=reducr.Scoring(budget=0.5))
    with pytest.raises(ValueError, match=r"`BatchSpec.target` is a function.*Pass their position, key or path"):
        make(spec=BatchSpec(input="input_ids", target=lambda batch: batch["labels"]))
    with pytest.raises(TypeError, match=r"this is the class. Pass loss=TokenLoss\(\)"):
        make(loss=TokenLoss)
    with pytest.raises(TypeError, match=r"`loss` must be a function of .* got str"):
        make(loss="token")
    model = make_parts("rho_loss")[0]
    with pytest.raises(ValueError, match=r"The loop selects by token.*gives one value per example.*Leave `loss` out"):
        make(irreducible=reducr.Reference(model, loss=LOSSES["sequence"]))
    with pytest.raises(ValueError, match=r"The loop selects by example.*gives one value per token"):
        make(loss=LOSSES["sequence"], irreducible=reducr.Reference(model, loss=TokenLoss()))
    with pytest.raises(ValueError, match=r"A table has one row per example.*sequence_loss"):
        reducr.Reference(model, loss=TokenLoss()).tabulate(Sequences())


def test_a_batch_without_a_label_is_refused():
    model, selector, _ = make_parts("train_loss")
    core = reducr.Downsampler(selector, loss=TokenLoss())
    core.prepare(model)
    batch = next(iter(candidates_of()))
    with pytest.raises(ValueError, match="No token of this batch has a label"):
        core.select({**batch, "labels": torch.full_like(batch["labels"], -100)}, model)


def test_a_table_of_sequence_losses_is_the_live_reference():
    data, batch = Sequences(), next(iter(candidates_of()))
    for rule in ("rho_loss", "reducr"):
        _, selector, reference = make_parts(rule)
        live = reference.bind(selector, loss=LOSSES["sequence"])
        models = reference.source.modules
        table = reducr.Reference(models if rule == "reducr" else models[0], loss=LOSSES["sequence"]).tabulate(data)
        reader = reducr.batch.BatchReader()
        torch.testing.assert_close(
            table.bind(selector).lookup(reader(batch)), live.lookup(reader(batch)).float(), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("unit", UNITS)
def test_a_reference_is_fitted_with_the_loss_of_the_loop(unit, capsys):
    """The held-out loss falls below that of chance; weights on a domain make its loss lower, and the others' higher."""
    clean = Sequences(48, seed=5, columns=("group",), has_empty=False)
    clean.tokens[:] = clean.tokens[:, :1]  # one token repeated; domain 0 is about to contradict the others
    is_labelled, is_first = clean.labels != -100, (clean.columns["group"] == 0).unsqueeze(1)
    clean.labels = torch.where(is_first, clean.tokens % (VOCABULARY - 1) + 1, clean.tokens).masked_fill(
        ~is_labelled, -100
    )
    optimizer = partial(torch.optim.AdamW, lr=0.05)
    fit = {"num_epochs": 20, "optimizer": optimizer, "loss": LOSSES[unit], "progress": False}
    report = reducr.irreducible.held_out_report(TinyLanguageModel(4), clean, **fit)
    assert report.loss < 0.7 * report.chance_loss
    assert not report.is_near_chance
    models = [
        reducr.fit_reference(TinyLanguageModel(4), clean, num_folds=0, group_weights=weights, **fit)
        for weights in ([1, 1, 1], [50, 1, 1])
    ]
    batch = next(iter(DataLoader(clean, batch_size=48)))
    losses = [plain_losses(model, batch, by_token=unit == "token") for model in models]
    groups = candidate_groups(batch, by_token=unit == "token")
    of_first = [sum(loss for loss, group in zip(own, groups, strict=True) if group == 0) for own in losses]
    of_others = [sum(loss for loss, group in zip(own, groups, strict=True) if group != 0) for own in losses]
    assert of_first[1] < of_first[0]
    assert of_others[1] > of_others[0]
    assert capsys.readouterr().err == ""


def test_a_batch_that_carries_its_index_is_read_with_it_and_handed_out_without():
    rows = Sequences(20, columns=())
    pairs = [(rows.tokens[number], rows.labels[number], number % NUM_DOMAINS) for number in range(20)]
    model, selector, _ = make_parts("train_loss")
    core = reducr.Downsampler(selector, fraction=FRACTION, loss=TokenLoss())
    core.prepare(model)
    batch = next(iter(DataLoader(reducr.indexed(pairs), batch_size=8)))
    selected = core.select(batch, model)
    assert type(selected) is list
    assert core.selected.index.tolist() == list(range(8))
    assert core.selected.group.tolist() == [number % NUM_DOMAINS for number in range(8)]
    assert int((selected[1] != -100).sum()) == core.selection.num_selected


def test_a_batch_sampler_chooses_sequences_by_a_table_without_their_labels():
    """The two lowest reference losses of each domain, at a low temperature and with equal quotas."""
    data, model = Sequences(), make_parts("uniform")[0]
    table = reducr.Reference(TinyLanguageModel(10), loss=LOSSES["sequence"]).tabulate(data)
    rule = {"uniform_share": 1.0, "irreducible_temperature": 1e-4}
    options = {"batch_size": 6, "fraction": None, "groups": data.columns["group"], "holdout": holdout_batches()}
    given = [row["labels"].tolist() for row in (data[number] for number in range(60))]
    ragged = [[label for label in labels if label != -100] for labels in given]
    rows = datasets.Dataset.from_dict({"labels": ragged, "group": data.columns["group"].tolist()})
    losses = plain_losses(TinyLanguageModel(10), next(iter(DataLoader(data, batch_size=60))), by_token=False)
    expected = {row for group in range(3) for row in sorted(range(group, 60, 3), key=losses.__getitem__)[:2]}
    for dataset in (data, rows):  # neither tells its labels as a whole
        sampler = reducr.SelectiveBatchSampler(
            dataset, model, "priority_sampling", table, loss=LOSSES["sequence"], **options, **rule
        )
        assert set(next(iter(sampler))) == expected
    with pytest.raises(ValueError, match="chooses whole examples before they are loaded, and TokenLoss selects tokens"):
        reducr.SelectiveBatchSampler(rows, model, "uniform", loss=TokenLoss(), **options)
    live = reducr.Reference(TinyLanguageModel(10))
    with pytest.raises(ValueError, match="Pass `targets=`, a tensor with one entry per example"):
        reducr.SelectiveBatchSampler(rows, model, "priority_sampling", live, loss=LOSSES["sequence"], **options)


def test_a_last_batch_of_few_sequences_is_trained_on_by_token():
    """All of its sequences are, so it is not short; by sequence it would give one example, and is skipped."""
    sizes = {}
    for unit in UNITS:
        loader, model, optimizer = make_loader("rho_loss", unit, data=Sequences(33), short_batches="skip")
        is_skipped = unit == "sequence"
        with pytest.warns(UserWarning, match="A batch has 3 candidates") if is_skipped else nullcontext():
            sizes[unit] = []
            for batch in loader:
                sizes[unit].append(len(batch["labels"]))
                train_on(model, batch, optimizer)
    assert sizes == {"sequence": [4, 4], "token": [15, 15, 3]}


def test_holdout_sequences_beside_the_selected_tokens():
    """A quarter of what is trained on: 0.6 * 0.25 of 15 sequences, rounded, with all their labels."""
    model, selector, reference = make_parts("rho_loss")
    options = {"loss": TokenLoss(), "holdout": holdout_batches(), "holdout_fraction": 0.25}
    data = Sequences(columns=("group",))
    loader = reducr.SelectiveLoader(candidates_of(data), model, selector, reference, 0.6, **options)
    for candidates, batch in zip(candidates_of(data), loader, strict=True):
        assert len(batch["labels"]) == len(candidates["labels"]) + 2
        assert torch.equal(batch["input_ids"][:-2], candidates["input_ids"])
        kept = int((batch["labels"][:-2] != -100).sum())
        total = int(0.6 * len(places_of(candidates)))
        assert kept == total - int(0.25 * total + 0.5)
        assert kept == loader.downsampler.selection.num_selected
        drawn = {tuple(row) for row in batch["labels"][-2:].tolist()}
        assert drawn <= {tuple(row) for row in HOLDOUT.labels.tolist()}
