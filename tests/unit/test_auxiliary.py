"""Models that are trained on the selected examples too, and batches that are mixed into every step."""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import reducr
from reducr.auxiliary import Auxiliary, AuxiliaryModel, ExtraBatches, selected_loss
from reducr.batch import Batch, BatchSpec
from reducr.batch.nested import concatenate
from reducr.downsampler import Downsampler

CPU = torch.device("cpu")


@pytest.fixture
def selected():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(8) % 3
    return Batch(torch.arange(8), torch.randn(8, 4, generator=generator), target, target)


def models(number):
    torch.random.manual_seed(5)
    return [nn.Linear(4, 3) for _ in range(number)]


def adamw(model, lr=0.1):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def assert_equal(one, other):
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_every_model_learns_as_it_would_alone(selected, accumulate_steps):
    """From the selected examples of every batch, with the mean gradient over the batches of a step."""
    model, proxy, slow = models(3)
    auxiliary = Auxiliary(
        [AuxiliaryModel(proxy, adamw(proxy), is_proxy=True), AuxiliaryModel(slow, adamw(slow, 0.001))]
    )
    selector = reducr.make_selector("train_loss", num_groups=3, sampler="top_k")
    downsampler = Downsampler(selector, fraction=0.5, auxiliary=auxiliary)
    downsampler.prepare(model)
    batches = []
    for number in range(6):
        batches.append(downsampler.select(selected._replace(input=selected.input + number), model))
        if number % accumulate_steps == accumulate_steps - 1:
            downsampler.step(model)
    for together, alone, lr in zip((proxy, slow), models(3)[1:], (0.1, 0.001), strict=True):
        optimizer = adamw(alone, lr)
        for first in range(0, 6, accumulate_steps):
            optimizer.zero_grad()
            for batch in batches[first : first + accumulate_steps]:
                (selected_loss(alone, batch) / accumulate_steps).backward()
            optimizer.step()
        assert_equal(together, alone)


def test_the_proxy_scores_and_a_loss_of_ones_own_is_minimised(selected):
    model, proxy = models(2)

    def doubled(model, batch):
        return 2 * selected_loss(model, batch)

    auxiliary = Auxiliary([AuxiliaryModel(proxy, torch.optim.SGD(proxy.parameters(), lr=0.1), doubled, is_proxy=True)])
    downsampler = Downsampler(reducr.make_selector("train_loss", num_groups=3), fraction=0.5, auxiliary=auxiliary)
    before = copy.deepcopy(proxy)
    batch = downsampler.select(selected, model)
    losses = nn.functional.cross_entropy(before(selected.input), selected.target, reduction="none")
    torch.testing.assert_close(downsampler.selection.scores, losses, check_dtype=False)
    downsampler.step(model)
    loss = nn.functional.cross_entropy(before(batch.input), batch.target)
    (gradient,) = torch.autograd.grad(loss, before.weight)
    torch.testing.assert_close(proxy.weight, before.weight - 0.2 * gradient)


def test_a_selection_that_was_not_trained_on_teaches_nothing(selected):
    model, slow = models(2)
    auxiliary = Auxiliary([AuxiliaryModel(slow, adamw(slow))])
    downsampler = Downsampler(reducr.make_selector("train_loss", num_groups=3), auxiliary=auxiliary)
    before = copy.deepcopy(slow)
    downsampler.select(selected, model)
    downsampler.discard()
    downsampler.step(model)
    assert_equal(slow, before)


def test_two_proxies_are_refused():
    first, second = models(2)
    with pytest.raises(ValueError, match=r"Only one auxiliary model can score the candidates; got 2"):
        Auxiliary([AuxiliaryModel(model, adamw(model), is_proxy=True) for model in (first, second)])


def test_the_state_of_the_models_and_their_optimizers_goes_on(selected):
    def downsampler():
        (slow,) = models(1)
        auxiliary = Auxiliary([AuxiliaryModel(slow, adamw(slow))])
        return slow, Downsampler(reducr.make_selector("train_loss", num_groups=3), auxiliary=auxiliary)

    model = nn.Linear(4, 3)
    (slow, whole), (again, rest) = downsampler(), downsampler()
    for number in range(4):
        if number == 2:
            rest.load_state_dict(copy.deepcopy(whole.state_dict()))
        for one in (whole, rest) if number >= 2 else (whole,):
            one.select(selected._replace(input=selected.input * number), model)
            one.step(model)
    assert_equal(slow, again)


# extra batches


def test_extra_batches_follow_one_after_another_and_start_again(selected):
    batches = [selected.take(torch.tensor(positions)) for positions in ([0, 1], [2, 3], [4])]
    extra = ExtraBatches(batches, transform=lambda batch: batch._replace(input=-batch.input))
    extra.stream.seek(2)
    joined = [extra.append_to(selected, num_examples=8, device=CPU) for _ in range(3)]
    assert [one.index[8:].tolist() for one in joined] == [[4], [0, 1], [2, 3]]
    for one in joined:
        assert torch.equal(one.input[:8], selected.input)
        assert torch.equal(one.input[8:], -selected.input[one.index[8:]])
        assert torch.equal(one.target, one.index % 3)


def test_a_loader_yields_them_after_the_selected_examples_of_any_structure(selected):
    """Their weight is 1, they are not counted, and a resumed loader continues with the next of them."""

    def as_dict(batch):
        texts = [f"example {index}" for index in batch.index.tolist()]
        return {"input": batch.input, "label": batch.target, "idx": batch.index, "text": texts, "name": "made"}

    def loader():
        selector = reducr.make_selector("group_dro", num_groups=3)
        batches = [as_dict(selected._replace(index=selected.index + 10 * number)) for number in range(4)]
        extra = [as_dict(selected.take(slice(start, start + 2))) for start in (0, 2)]
        options = {"fraction": 0.25, "auxiliary": Auxiliary(extra_batches=extra), "weights_examples": True}
        return reducr.SelectiveLoader(batches, nn.Linear(4, 3), selector, **options)

    whole, rest, indices = loader(), loader(), []
    for number, batch in enumerate(whole):
        indices.append(batch["idx"].tolist())
        assert (len(batch["text"]), batch["name"], batch["input"].shape) == (4, "made", (4, 4))
        assert batch["text"] == [f"example {index}" for index in indices[-1]]
        assert whole.example_weights.shape == (4,)
        assert whole.example_weights[2:].tolist() == [1.0, 1.0]
        if number == 2:
            rest.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert [index[2:] for index in indices] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert all(index // 10 == number for number, drawn in enumerate(indices) for index in drawn[:2])
    assert (whole.report().num_candidates, whole.report().num_selected) == (32, 8)
    assert sum(whole.report().group_counts) == 8
    remaining = iter(rest)
    assert next(remaining)["idx"].tolist()[2:] == [2, 3]
    message = "'group_dro' weights the loss of each example, and this loop did not read `example_weights`"
    with pytest.raises(RuntimeError, match=message):
        next(remaining)


def test_extra_batches_are_for_one_process(selected):
    with pytest.raises(ValueError, match=r"Extra batches work in one process only .* distributed='local'"):
        Downsampler(
            reducr.make_selector("uniform", num_groups=3),
            auxiliary=Auxiliary(extra_batches=[selected]),
            distributed="local",
        )


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (Pair(torch.ones(1), "a"), Pair(torch.zeros(2), "b"), Pair(torch.tensor([1.0, 0.0, 0.0]), "a")),
        ([torch.ones(1), ["x"]], [torch.zeros(1), ["y"]], [torch.tensor([1.0, 0.0]), ["x", "y"]]),
        ({"views": [torch.ones(1), torch.ones(1)]}, {"views": [torch.zeros(1), torch.zeros(1)]},
         {"views": [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])]}),
        ({"a": np.ones(1), "n": 3, "none": None}, {"a": np.zeros(1), "n": 4, "none": None, "more": 1},
         {"a": np.array([1.0, 0.0]), "n": 3, "none": None}),
    ],
)  # fmt: skip
def test_concatenate(first, second, joined):
    assert str(concatenate(first, second, num_examples=1)) == str(joined)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"x": torch.ones(1)}, {"y": torch.ones(1)}, r"batch\['x'\] is missing in one"),
        ({"x": [torch.ones(1)]}, {"x": torch.ones(1)}, r"batch\['x'\] is a list there and a Tensor in an extra batch"),
        ((torch.ones(1), torch.ones(1)), {"x": 1}, "batch is a tuple there and a dict in an extra batch"),
    ],
)
def test_batches_of_another_structure_cannot_be_joined(first, second, message):
    with pytest.raises(ValueError, match=message):
        concatenate(first, second, num_examples=1)


def test_weights_scale_the_losses(selected):
    (model,) = models(1)
    weights = torch.tensor([2.0, 0.0, 0.5, 1, 1, 1, 1, 1])
    losses = nn.functional.cross_entropy(model(selected.input), selected.target, reduction="none")
    torch.testing.assert_close(selected_loss(model, selected, weights), (losses * weights).sum() / 8)
    torch.testing.assert_close(selected_loss(model, selected, torch.ones(8)), selected_loss(model, selected))


# what is refused, and what is kept


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "Extra batches hold no batch"),
        (iter([1]), "a list_iterator can be iterated only once"),
        (
            [{"x": np.ones((2, 4), np.float32), "label": torch.zeros(2).long()}],
            r"batch\['x'\] is a Tensor of torch.float32",
        ),
        (
            [{"x": torch.ones(2, 4).double(), "label": torch.zeros(2).long()}],
            "Tensor of torch.float64 in an extra batch",
        ),
        (
            [{"x": torch.ones(2, 4), "label": [0, 1]}],
            r"batch\['label'\] is a Tensor of torch.int64 there and a list in",
        ),
        (
            [{"x": torch.ones(2, 5), "label": torch.zeros(2).long()}],
            r"is a Tensor \(2, 4\) there and a Tensor \(2, 5\)",
        ),
        (
            [{"x": torch.ones(2, 4), "label": torch.zeros(3).long()}],
            r"has 2 rows in batch\['x'\] and 3 in batch\['label'\]",
        ),
        ([(torch.ones(2, 4), torch.zeros(2).long())], "batch is a dict there and a tuple in an extra batch"),
    ],
)
def test_extra_batches_that_do_not_fit_are_refused(extra, message):
    spec = BatchSpec(input="x", target="label")
    with pytest.raises(ValueError, match=message):
        next(
            iter(
                reducr.SelectiveLoader(
                    [{"x": torch.randn(8, 4), "label": torch.arange(8) % 3}],
                    nn.Linear(4, 3),
                    reducr.make_selector("train_loss", num_groups=3),
                    fraction=0.25,
                    spec=spec,
                    auxiliary=Auxiliary(extra_batches=extra),
                )
            )
        )


def test_lists_and_tuples_stand_for_each_other():
    """A DataLoader yields lists of what a list of batches has as tuples."""
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    auxiliary = Auxiliary(extra_batches=[[torch.zeros(2, 4), torch.tensor([0, 1])]])
    selector = reducr.make_selector("train_loss", num_groups=3)
    loader = reducr.SelectiveLoader([batch], nn.Linear(4, 3), selector, fraction=0.25, auxiliary=auxiliary)
    assert [tuple(one.shape) for one in next(iter(loader))] == [(4, 4), (4,)]


def test_every_extra_batch_is_used_whatever_the_epochs(selected):
    """A loader of an epoch goes on where the one before stopped, and reads no batch twice to get there."""
    reads = []

    class Counted(list):
        def __iter__(self):
            for one in super().__iter__():
                reads.append(1)
                yield one

    extra = Counted([selected.take(torch.tensor([number])) for number in range(5)])
    selector = reducr.make_selector("train_loss", num_groups=3)
    model = nn.Linear(4, 3)
    loader = reducr.SelectiveLoader(
        [selected] * 3, model, selector, fraction=0.2, auxiliary=Auxiliary(extra_batches=extra)
    )
    appended = []
    for batch in (batch for _ in range(4) for batch in loader):
        appended.append(int(batch.index[-1]))
        model(batch.input).sum().backward()
    assert appended == [number % 5 for number in range(12)]
    assert len(reads) == 12
    copied = copy.deepcopy(loader.downsampler)
    assert int(copied.select(selected, nn.Linear(4, 3)).index[-1]) == 12 % 5


def test_a_state_is_a_copy_and_loading_starts_afresh(selected):
    def loader():
        model, slow = models(2)
        auxiliary = Auxiliary([AuxiliaryModel(slow, adamw(slow))])
        selector = reducr.make_selector("reducr", num_groups=3, use_irreducible=False, step_size=0.1)
        return slow, reducr.SelectiveLoader(
            [selected] * 3, model, selector, fraction=0.25, holdout=[selected], auxiliary=auxiliary
        )

    slow, used = loader()
    state = used.state_dict()
    kept = copy.deepcopy(state)
    for _ in range(2):
        next(iter(used))
        used.load_state_dict(state)
        assert str(state) == str(kept)
        assert len(list(used)) == 3
        assert sum(used.report().group_counts) == used.report().num_selected == 6
        used.load_state_dict(state)
    fresh, other = loader()
    assert len(list(used)) == len(list(other)) == 3
    assert_equal(slow, fresh)


def test_gradients_of_auxiliary_models_are_part_of_the_state(selected):
    """In the middle of an accumulation."""

    def parts():
        model, slow = models(2)
        auxiliary = Auxiliary([AuxiliaryModel(slow, torch.optim.SGD(slow.parameters(), lr=0.1))])
        return model, slow, Downsampler(reducr.make_selector("train_loss", num_groups=3), auxiliary=auxiliary)

    (model, slow, whole), (_, again, rest) = parts(), parts()
    for number in range(4):
        whole.select(selected._replace(input=selected.input * number), model)
        if number == 2:
            rest.load_state_dict(copy.deepcopy(whole.state_dict()))
        elif number == 3:
            rest.select(selected._replace(input=selected.input * number), model)
    whole.step(model)
    rest.step(model)
    assert_equal(slow, again)
    assert whole.metrics().keys() == rest.metrics().keys()
    assert rest.metrics()["select/group_count/0"] == whole.metrics()["select/group_count/0"]


def test_a_loop_may_change_the_batch_that_it_got(selected):
    model, slow = models(2)
    auxiliary = Auxiliary([AuxiliaryModel(slow, adamw(slow))])
    batches = [{"input": selected.input, "label": selected.target}] * 2
    loader = reducr.SelectiveLoader(
        batches, model, reducr.make_selector("group_dro", num_groups=3), auxiliary=auxiliary, weights_examples=True
    )
    for batch in loader:
        batch.pop("label")
        assert loader.example_weights.shape == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": {"mode": "eval"}}, "`scoring` must be a reducr.Scoring; got dict."),
        ({"auxiliary": []}, "`auxiliary` must be a reducr.Auxiliary; got list."),
        ({"spec": {"target": 1}}, "`spec` must be a reducr.BatchSpec; got dict."),
    ],
)
def test_options_of_another_kind_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        Downsampler(reducr.make_selector("uniform", num_groups=3), **options)


def test_models_of_another_kind_and_number_are_refused(selected):
    (model,) = models(1)
    one = AuxiliaryModel(model, adamw(model))
    with pytest.raises(TypeError, match="`models` must be a sequence of AuxiliaryModel"):
        Auxiliary(one)
    selector = reducr.make_selector("uniform", num_groups=3)
    state = Downsampler(selector, auxiliary=Auxiliary([one])).state_dict()
    with pytest.raises(ValueError, match="The state is of 1 auxiliary models, and this training has 2"):
        Downsampler(selector, auxiliary=Auxiliary([one, one])).load_state_dict(state)


def test_nothing_to_discard_is_said(selected):
    with pytest.raises(RuntimeError, match="There is no selection to discard"):
        Downsampler(reducr.make_selector("uniform", num_groups=3)).discard()


def test_the_plain_loop_minimises_the_loss_that_it_scores_by_and_needs_steps_and_batches(selected):
    (model,) = models(1)
    before = copy.deepcopy(model)

    def loss(output, target):
        return 3 * nn.functional.cross_entropy(output, target, reduction="none")

    downsampler = Downsampler(reducr.make_selector("uniform", num_groups=3), fraction=1.0, loss=loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reducr.train(model, [selected], downsampler, optimizer, num_steps=1)
    (gradient,) = torch.autograd.grad(selected_loss(before, selected), before.weight)
    torch.testing.assert_close(model.weight, before.weight - 0.3 * gradient)
    with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1; got 0"):
        reducr.train(model, [selected], downsampler, optimizer, num_steps=0)
    with pytest.raises(ValueError, match="`candidates` hold no batch"):
        reducr.train(model, [], downsampler, optimizer, num_steps=1)
