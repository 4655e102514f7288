"""What every integration shares: what is refused and when, what is refreshed when, what is reported, what is kept."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import reducr
from reducr.batch import BatchSpec, Selection
from reducr.downsampler import Downsampler
from reducr.irreducible import LiveLogits, PlainIrreducibleLoss
from reducr.scoring import Scoring, holdout_of

NUM_FEATURES, NUM_CLASSES, SIZE = 4, 3, 10


def make_model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.ReLU(), nn.Linear(8, NUM_CLASSES))


def batch_of(size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, NUM_FEATURES, generator=generator)
    return torch.arange(size), inputs, torch.arange(size) % NUM_CLASSES


HOLDOUT = [batch_of(9, seed=100), batch_of(6, seed=101)]


def rule(name="train_loss", **options):
    return reducr.make_selector(name, num_groups=NUM_CLASSES, **options)


class Loop:
    """A Downsampler with the model of its loop, which steps after ``accumulate_steps`` batches."""

    def __init__(self, model, *arguments, accumulate_steps=1, holdout=None, refresh_steps=None, **options):
        self.model = model
        self.accumulate_steps = accumulate_steps
        self.core = Downsampler(*arguments, holdout=holdout_of(holdout, refresh_steps), **options)

    def __getattr__(self, name):
        if name.startswith("__") or name == "core":
            raise AttributeError(name)
        return getattr(self.core, name)

    def prepare(self):
        self.core.prepare(self.model)

    def select(self, batch):
        return self.core.select(batch, self.model)

    def step(self, *, is_last=False):
        if is_last or self.core.num_waiting >= self.accumulate_steps:
            self.core.step(self.model, is_last=is_last)


def downsampler(name="train_loss", *, model=None, options=None, **more):
    irreducible = PlainIrreducibleLoss(LiveLogits(make_model(1))) if name == "rho_loss" else None
    return Loop(model or make_model(), rule(name, **(options or {})), irreducible, **more)


def reducr_downsampler(**more):
    class GroupLosses:
        def lookup(self, batch):
            return batch.input[:, :NUM_CLASSES].abs()

    return Loop(make_model(), rule("reducr", step_size=0.3, sampler="softmax"), GroupLosses(), holdout=HOLDOUT, **more)


class NoLookup:
    pass


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((lambda x: x, rule()), {}, TypeError, "`model` must be a torch.nn.Module; got function."),
        (
            (make_model(), "reducr"),
            {},
            ValueError,
            "'reducr' treats each group of examples by itself, and the groups are counted from the holdout set. Pass ",
        ),
        ((make_model(), None), {}, TypeError, "`selector` must come from reducr.make_selector; got NoneType."),
        (
            (make_model(), rule("rho_loss")),
            {},
            ValueError,
            "'rho_loss' needs irreducible losses; got irreducible=None. Pass anything with lookup(batch)",
        ),
        (
            (make_model(), rule("rho_loss"), NoLookup()),
            {},
            TypeError,
            "`irreducible` must have lookup(batch) -> Tensor; got NoLookup. For a model, pass ",
        ),
        (
            (make_model(), rule()),
            {"fraction": 0.0},
            ValueError,
            "`fraction` must be in (0, 1], the fraction of the candidates",
        ),
        ((make_model(), rule()), {"fraction": 10}, ValueError, "got 10. For 10 percent, pass 0.1."),
        ((make_model(), rule()), {"fraction": "0.1"}, ValueError, "the fraction of the candidates to keep; got 0.1."),
        (
            (make_model(), rule("group_dro")),
            {},
            ValueError,
            "'group_dro' weights the losses of the examples it selects. Multiply each loss with `example_weights`",
        ),
        ((make_model(), rule()), {"weights_examples": 1}, ValueError, "weights_examples must be True or False; got 1."),
        (
            (make_model(), rule("divbs")),
            {"scoring": Scoring(compile=True)},
            ValueError,
            "'divbs' reads the input of the model's last layer, which a compiled model hides. Use `compile=False`",
        ),
        (
            (make_model(), rule()),
            {"accumulate_steps": 0},
            ValueError,
            "accumulate_steps must be a whole number of at least 1; got 0.",
        ),
        (
            (make_model(), rule()),
            {"refresh_steps": 2.0, "holdout": HOLDOUT},
            ValueError,
            "refresh_steps must be a whole number of at least 1; got 2.0.",
        ),
        (
            (make_model(), rule()),
            {"refresh_steps": 5},
            ValueError,
            "refresh_steps=5 has no effect without `holdout`. Pass `holdout=`, the batches.",
        ),
        (
            (make_model(), rule()),
            {"holdout": iter(HOLDOUT)},
            ValueError,
            "The holdout set is read again at every refresh, and a list_iterator can be iterated only once. Pass a",
        ),
        (
            (make_model(), rule()),
            {"distributed": "globally"},
            ValueError,
            "unknown distributed mode 'globally'. Did you mean 'global'",
        ),
    ],
)
def test_faults_of_the_set_up_are_found_at_construction(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        reducr.SelectiveLoader([batch_of()], *arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "training"}, ValueError, "unknown scoring mode 'training'. Did you mean 'train'"),
        (
            {"autocast": torch.float32},
            ValueError,
            "`autocast` must be torch.bfloat16, torch.float16 or None; got torch.f",
        ),
        ({"compile": 1}, ValueError, "compile must be True or False; got 1"),
        (
            {"resolution": 2},
            ValueError,
            "`resolution` must be in (0, 1), the fraction of an image's height and width; got",
        ),
        ({"budget": "all"}, TypeError, "`budget` must be a fraction of the candidates or a ScoringBudget; got str."),
        ({"budget": 1.5}, ValueError, "The fraction of a scoring budget must be in (0, 1]"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1; got 0"),
    ],
)
def test_options_of_the_scoring_pass_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Scoring(**options)


def test_a_rule_with_a_holdout_term_needs_it_before_the_first_batch():
    message = (
        "'payoff' needs the holdout loss before its first selection. Pass `holdout=`, batches of the clean holdout "
        "set, or call selector.set_group_holdout_loss(h)."
    )
    one = Loop(make_model(), rule("payoff"), PlainIrreducibleLoss(LiveLogits(make_model(1))))
    with pytest.raises(ValueError, match=re.escape(message)):
        one.prepare()
    one.selector.set_group_holdout_loss(torch.ones(NUM_CLASSES))
    one.prepare()
    with pytest.raises(ValueError, match=r"There is no holdout set to refresh the holdout loss with. Pass `holdout=`"):
        one.refresh(one.model)


FLOAT_GROUP = torch.zeros(SIZE)
OUT_OF_RANGE = torch.tensor([0, 1, 2, 0, 5, 1, 2, -1, 0, 0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (batch_of(0), "The batch has no examples: there is nothing to select from."),
        (
            (*batch_of(), FLOAT_GROUP),
            "must hold one integer per example; got torch.float32 (10,). Pass integers, or say where the group is",
        ),
        (
            (batch_of()[1], torch.rand(SIZE, NUM_CLASSES)),
            "A batch's group (its target, if there is none) must hold one integer per example; got torch.float32",
        ),
        (
            (*batch_of(), OUT_OF_RANGE),
            "a batch's group must be in 0..2; position 4 holds 5 (2 such in all).",
        ),
        ((batch_of()[1], OUT_OF_RANGE), "a batch's group must be in 0..2; position 4 holds 5 (2 such in all)."),
    ],
)
def test_points_that_cannot_be_selected_from_are_refused_in_any_batch(batch, message):
    """In the first batch, and as well in a later one."""
    with pytest.raises(ValueError, match=re.escape(message)):
        downsampler().select(batch)
    one = downsampler(spec=BatchSpec.of(batch))
    usual = batch_of()
    one.select({2: usual[1:], 3: usual, 4: (*usual, usual[2])}[len(batch)])
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        one.select(batch)
    assert str(one.state_dict()) == str(before)


class Returns(nn.Module):
    """A model with an output that is given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        return self.output(inputs)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda x: x.mean(),
            "looks like a loss. Examples are scored by their own losses, so it must return logits (B, C) with B = 10",
        ),
        (
            lambda x: {"loss": x.mean()},
            "The model must return a tensor of logits (B, C), or an output with `logits`; got dict. Wrap it, or",
        ),
        (lambda x: x.sum(dim=1), "floating-point logits of shape (B, C) with B = 10; got torch.float32 (10,)."),
        (lambda x: x[:5], "floating-point logits of shape (B, C) with B = 10; got torch.float32 (5, 4)."),
        (lambda x: x[:, :2], "targets must be in 0..1; position 2 holds 2 (3 such in all)."),
    ],
)
def test_a_model_whose_output_is_no_logits_is_found_at_the_first_batch(output, message):
    one = Loop(Returns(output), rule())
    with pytest.raises(ValueError, match=re.escape(message)):
        one.select(batch_of())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(),
            "got torch.float32 (). One value for all examples is their mean or sum: use reduction='none'.",
        ),
        (
            lambda output, target: (output - 1).square(),
            "shape (10,); got torch.float32 (10, 3). Average it over all axes but the first.",
        ),
        (lambda output, target: target, "shape (10,); got torch.int64 (10,)."),
        (lambda output, target: 0.3, "shape (10,); got float."),
    ],
)
def test_a_loss_that_is_not_one_for_each_point_is_found_at_the_first_batch(loss, message):
    one = downsampler(loss=loss)
    with pytest.raises(ValueError, match=re.escape(message)):
        one.select(batch_of())


def test_a_loss_of_ones_own_may_have_targets_of_any_kind():
    """A regression, whose groups are given: the points with the largest squared error."""
    _, inputs, groups = batch_of()
    one = Loop(
        Returns(lambda x: x[:, 0]),
        rule(sampler="top_k"),
        loss=lambda output, target: (output - target).square(),
        spec=BatchSpec(input="x", target="y", group="site"),
        fraction=0.3,
    )
    wanted = torch.linspace(-1, 1, SIZE)
    selected = one.select({"x": inputs, "y": wanted, "site": groups})
    best = (inputs[:, 0] - wanted).square().topk(3).indices
    assert torch.equal(selected["y"], wanted[best])
    with pytest.raises(
        ValueError, match=r"The cross-entropy needs targets .* got torch.float32 \(10,\). For other targets pass"
    ):
        Loop(make_model(), rule(), spec=BatchSpec(input="x", target="y", group="site")).select(
            {"x": inputs, "y": wanted, "site": groups}
        )


def test_points_weigh_one_unless_the_rule_weights_them():
    loaders = [
        reducr.SelectiveLoader([batch_of()], make_model(), rule(name), weights_examples=True, fraction=0.5)
        for name in ("train_loss", "group_dro")
    ]
    with pytest.raises(RuntimeError, match="No batch has been selected from yet, so there are no examples to weight"):
        _ = loaders[0].example_weights
    for loader in loaders:
        next(iter(loader))
    assert loaders[0].example_weights.tolist() == [1.0] * 5
    plain, weighted = (loader.downsampler for loader in loaders)
    assert plain.selection.example_weights is plain.example_weights is None
    assert torch.equal(weighted.example_weights, weighted.selection.example_weights)
    # all groups weigh about the same at first, be there one point of it or two
    groups = weighted.selected.target
    sums = torch.zeros(3).index_add_(0, groups, weighted.example_weights)
    present = torch.unique(groups)
    assert sums[present].tolist() == pytest.approx([5 / 3] * len(present), abs=0.05)


def test_a_rule_that_knows_points_by_their_index_needs_it():
    remembering = downsampler("rs2")
    remembering.prepare()
    with pytest.raises(
        ValueError, match=r"'rs2' keeps state per example, by its index, and these batches have none. Let"
    ):
        remembering.select(batch_of()[1:])


def test_targets_of_narrow_integers_are_targets():
    index, inputs, targets = batch_of()
    picked = [
        downsampler(options={"sampler": "top_k"}).select((index, inputs, targets.to(dtype)))[0]
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8)
    ]
    assert all(torch.equal(picked[0], other) for other in picked[1:])


def test_a_hundred_and_fifty_groups_of_int16_targets():
    """More than an int8 can count: ranges are compared as wide integers."""
    target = torch.arange(150, dtype=torch.int16)
    one = Loop(
        Returns(lambda x: x),
        reducr.make_selector("class_balanced", num_groups=200),
        fraction=1.0,
        spec=BatchSpec(target=1, input=0),
    )
    assert len(one.select((torch.zeros(150, 200), target))[1]) == 150
    narrow = Loop(one.model, reducr.make_selector("uniform", num_groups=200), spec=BatchSpec(target=1, input=0))
    assert len(narrow.select((torch.zeros(10, 200), torch.arange(10, dtype=torch.int8)))[1]) == 1


def test_on_a_cpu_nothing_is_copied_to_be_moved():
    one = downsampler(fraction=1.0, options={"sampler": "top_k"})
    batch = batch_of()
    selected = one.select(batch)
    assert one.selected.input.shape == batch[1].shape
    assert torch.equal(selected[1], batch[1][selected[0]])
    assert one.selector.step.device == torch.device("cpu")
    assert batch[1].data_ptr() != selected[1].data_ptr()


def test_the_report_counts_what_was_seen_and_taken():
    one = reducr_downsampler(fraction=0.25, refresh_steps=2)
    empty = one.report()
    assert (empty.num_steps, empty.num_batches, empty.num_candidates, empty.num_selected) == (0, 0, 0, 0)
    assert empty.fraction != empty.fraction  # NaN before the first batch
    assert empty.group_weights == pytest.approx([1 / 3] * 3)
    one.prepare()
    groups = []
    for number, size in enumerate((10, 10, 7)):
        batch = batch_of(size, seed=number)
        if number == 1:
            batch[1][4] = float("nan")
            batch[1][6] = float("inf")
        groups.append(one.select(batch)[2])
        if number == 1:
            with pytest.warns(RuntimeWarning, match="2 of 10 candidates have a NaN or infinite loss"):
                one.step()
        else:
            one.step()
    report = one.report()
    assert (report.num_steps, report.num_batches, report.num_candidates, report.num_selected) == (3, 3, 27, 5)
    assert report.fraction == pytest.approx(5 / 27)
    assert report.group_counts == torch.bincount(torch.cat(groups), minlength=3).tolist()
    assert report.num_non_finite == 2
    assert report.group_weights == one.selector.group_weights.tolist()
    assert min(report.selection_seconds, report.holdout_seconds) > 0
    lines = str(report).splitlines()
    assert lines[0] == "5 of 27 candidates selected (0.185)"
    assert lines[1] == "3 batches, 3 steps"
    assert lines[3] == "2 candidates left out because their loss was NaN or infinite"
    assert lines[4] == f"group 0: {report.group_counts[0]} selected, weight {report.group_weights[0]:.4f}"
    assert len(lines) == 7


class Counted(list):
    """Holdout batches that count how often they are read."""

    num_passes = 0

    def __iter__(self):
        self.num_passes += 1
        return super().__iter__()


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # after every call of step() over two epochs of five batches; the first pass is made by prepare()
        ({"refresh_steps": 2}, [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]),
        ({"refresh_steps": 1}, [2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 11]),
        ({"refresh_steps": 100}, [1] * 12),
        ({"refresh_steps": "epoch"}, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3]),
        # steps of two batches, the last of an epoch of one: 3 steps an epoch
        ({"refresh_steps": 2, "accumulate_steps": 2}, [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]),
        ({"refresh_steps": "epoch", "accumulate_steps": 2}, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3]),
    ],
)
def test_the_holdout_loss_is_refreshed_when_due(options, passes):
    holdout = Counted(HOLDOUT)
    one = downsampler(holdout=holdout, **options)
    one.prepare()
    assert holdout.num_passes == 1
    seen = []
    for _ in range(2):
        for number in range(5):
            one.select(batch_of(seed=number))
            one.step()
            seen.append(holdout.num_passes)
        one.step(is_last=True)
        seen.append(holdout.num_passes)
    assert seen == passes
    one.prepare()
    assert holdout.num_passes == passes[-1]


def test_a_loader_ends_every_pass_with_a_refresh():
    holdout, model = Counted(HOLDOUT), make_model()
    batches = [batch_of(seed=number) for number in range(5)]
    reference = reducr.Reference(make_model(seed=1))
    loader = reducr.SelectiveLoader(batches, model, rule("reducr"), reference, holdout=holdout, refresh_steps="epoch")
    for epoch in range(3):
        for _, inputs, _ in loader:
            assert holdout.num_passes == 1 + epoch
            model(inputs).sum().backward()
        assert holdout.num_passes == 2 + epoch


def test_a_refresh_puts_the_mean_losses_of_the_holdout_groups_in_force():
    one = reducr_downsampler()
    one.prepare()
    inputs, targets = (torch.cat([batch[place] for batch in HOLDOUT]) for place in (1, 2))
    losses = nn.functional.cross_entropy(one.model(inputs), targets, reduction="none").detach()
    expected = [float(losses[targets == group].mean()) for group in range(NUM_CLASSES)]
    assert one.selector.group_holdout_loss.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_rule_without_a_holdout_term_keeps_the_loss_it_is_given():
    one = downsampler("rho_loss", holdout=HOLDOUT)
    assert not one.selector.needs_group_holdout_loss
    one.prepare()
    assert bool(torch.isfinite(one.selector.group_holdout_loss).all())
    without = downsampler("rho_loss")
    without.prepare()
    assert bool(torch.isnan(without.selector.group_holdout_loss).all())
    one.select(batch_of()), without.select(batch_of())
    assert torch.equal(one.selection.positions, without.selection.positions)


def test_holdout_batches_without_a_group_name_it():
    one = downsampler(holdout=[batch_of(2)])
    with pytest.raises(ValueError, match="every group needs at least one holdout example; group 2 of 3 has none"):
        one.prepare()


def run(one, batches, *, state=None, after=None):
    """The selected indices of all batches; the state after some."""
    picked = []
    for number, batch in enumerate(batches):
        if number == after:
            state = copy.deepcopy(one.state_dict())
        picked.append(one.select(batch)[0].tolist())
        one.step()
    return picked, state


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_the_state_goes_on_in_the_middle_of_an_accumulation(after):
    """Three batches to a step; the rule draws, and its weights move."""
    batches = [batch_of(seed=number) for number in range(9)]
    options = {"accumulate_steps": 3, "refresh_steps": 2, "fraction": 0.3, "seed": 4}
    one = reducr_downsampler(**options)
    one.prepare()
    picked, state = run(one, batches, after=after)
    assert len(state["waiting"]) == after % 3
    again = reducr_downsampler(**options)
    again.load_state_dict(state)
    again.prepare()
    rest, _ = run(again, batches[after:])
    assert rest == picked[after:]
    assert torch.equal(again.selector.cumulative_payoff, one.selector.cumulative_payoff)
    assert int(again.selector.step) == 3
    for name in ("num_steps", "num_batches", "num_candidates", "num_selected", "group_counts", "num_non_finite"):
        assert getattr(again.report(), name) == getattr(one.report(), name)


def test_draws_go_on_where_they_were():
    batches = [batch_of(seed=number) for number in range(6)]
    one = downsampler("uniform", fraction=0.3, seed=11)
    picked, state = run(one, batches, after=3)
    again = downsampler("uniform", fraction=0.3, seed=12)
    again.load_state_dict(state)
    assert run(again, batches[3:])[0] == picked[3:]
    assert run(downsampler("uniform", fraction=0.3, seed=12), batches[3:])[0] != picked[3:]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_draws_what_the_original_draws(copied):
    """A pickled one crosses to processes that Lightning spawns."""
    batches = [batch_of(seed=number) for number in range(4)]
    one = downsampler("uniform", fraction=0.3, seed=11)
    run(one, batches[:2])
    again = copied(one)
    picked = run(one, batches)[0]
    assert run(again, batches)[0] == picked
    assert len({str(index) for index in picked}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: None,
            "the state of a Downsampler must hold counts, generator, group_counts, holdout_loss, seconds, ",
        ),
        (lambda state: {}, "selector, step_counts, waiting; got nothing."),
        (lambda state: {**state, "epoch": 1}, "got counts, epoch, generator"),
        (
            lambda state: {**state, "selector": reducr.make_selector("reducr", num_groups=4).state_dict()},
            "the state does not fit this Reducr: group_holdout_loss must be torch.float64 (3,), not torch.float64 (4,)",
        ),
    ],
)
def test_the_state_of_something_else_is_refused(change, message):
    one = reducr_downsampler()
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        one.load_state_dict(change(reducr_downsampler().state_dict()))
    assert str(one.state_dict()) == str(before)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(NUM_FEATURES), 0


def stream():
    return DataLoader(Endless(), batch_size=4)


def test_a_stream_without_a_length_has_no_end_of_an_epoch_to_refresh_at():
    message = (
        "The loader has no `__len__`, so its epoch may have no end to refresh the holdout loss at. Leave "
        "`refresh_steps='epoch'` out, or pass `refresh_steps=N`, the gradient steps between two refreshes."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.SelectiveLoader(stream(), make_model(), rule(), holdout=HOLDOUT, refresh_steps="epoch")
    loader = reducr.SelectiveLoader(stream(), make_model(), rule(), holdout=HOLDOUT, refresh_steps=3)
    assert next(iter(loader))[0].shape == (1, NUM_FEATURES)
    assert next(iter(reducr.SelectiveLoader(stream(), make_model(), rule())))[1].tolist() == [0]


@pytest.mark.parametrize("loader", [3, None, nn.Linear(2, 2)])
def test_a_loader_that_gives_no_batches_is_refused(loader):
    message = f"`loader` must be an iterable of batches, such as a DataLoader; got {type(loader).__name__}."
    with pytest.raises(TypeError, match=re.escape(message)):
        reducr.SelectiveLoader(loader, make_model(), rule())


def test_one_pass_at_a_time():
    loader = reducr.SelectiveLoader([batch_of(seed=number) for number in range(4)], make_model(), rule())
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(RuntimeError, match=r"Only one active iterator is supported. Finish or discard the first one."):
        next(first)
    assert len(list(second)) == 3


def test_a_pass_that_was_left_early_is_no_pass_at_a_time():
    loader = reducr.SelectiveLoader([batch_of(seed=number) for number in range(4)], make_model(), rule())
    for _ in loader:
        with torch.no_grad():
            next(loader.model.parameters()).mul_(0.9)  # trained on the first batch
        break
    assert [len(list(loader)) for _ in range(2)] == [4, 4]
    assert loader.epoch == 3
    assert loader.report().num_steps == loader.report().num_batches == 9


def test_the_state_of_a_loader_counts_the_last_batch_as_trained_on():
    loader = reducr.SelectiveLoader([batch_of(seed=number) for number in range(4)], make_model(), rule())
    passed = iter(loader)
    next(passed)
    assert loader.report().num_steps == 0
    state = loader.state_dict()
    assert loader.report().num_steps == state["downsampler"]["counts"]["num_steps"] == 1
    next(passed)
    assert loader.report().num_steps == 1
    with pytest.raises(
        ValueError, match="the state of a SelectiveLoader must hold downsampler, loader; got counts, gen"
    ):
        loader.load_state_dict(state["downsampler"])


def test_a_loader_of_empty_and_short_batches():
    """The last, shorter batch gives at least one point; a batch without points is a fault of the loader."""
    batches = [batch_of(10), batch_of(3), batch_of(1)]
    loader = reducr.SelectiveLoader(batches, make_model(), rule(), fraction=0.2, short_batches="keep")
    assert [len(batch[0]) for batch in loader] == [2, 1, 1]
    broken = reducr.SelectiveLoader([batch_of(10), batch_of(0)], make_model(), rule())
    with pytest.raises(ValueError, match="The batch has no examples: there is nothing to select from"):
        list(broken)
    assert list(reducr.SelectiveLoader([], make_model(), rule())) == []


def test_a_selection_is_what_update_takes():
    one = downsampler()
    one.select(batch_of())
    assert isinstance(one.selection, Selection)
    assert one.loss_weight == 1.0
    with pytest.raises(TypeError, match=r"update\(\) takes the Selection that select\(\) returned; got Tensor"):
        one.selector.update(one.selection.positions)
