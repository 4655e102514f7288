"""Mistakes that once passed in silence: each is an error or a warning that says what to do, or is mended."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.auxiliary import Auxiliary, AuxiliaryModel
from reducr.batch import BatchSpec
from reducr.batch.nested import ListKinds, concatenate, index_batch
from reducr.downsampler import Downsampler
from reducr.irreducible import LiveLogits, PlainIrreducibleLoss
from reducr.scoring import Scoring


def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def batch_of(size=20, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.arange(size) % 3


def batches_of(number, size=20):
    return [batch_of(size, seed=seed) for seed in range(number)]


def loader_of(batches, name="train_loss", **options):
    return reducr.SelectiveLoader(batches, model(), name, **options)


def train_on(loader, batch):
    """One gradient step."""
    nn.functional.cross_entropy(loader.model(batch[0]), batch[1]).backward()
    torch.optim.SGD(loader.model.parameters(), lr=0.1).step()
    loader.model.zero_grad()


# ---- states


def test_the_state_of_another_rule_is_refused():
    source = PlainIrreducibleLoss(LiveLogits(model()))
    saved = loader_of(batches_of(3), "rho_loss", irreducible=source)
    list(saved)
    state = saved.state_dict()
    message = (
        "The state is that of the rule 'rho_loss', and this is 'train_loss'. Resume with the rule of the saved run."
    )
    loader = loader_of(batches_of(3))
    before = str(loader.downsampler.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        loader.load_state_dict(state)
    assert str(loader.downsampler.state_dict()) == before
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.make_selector("train_loss").load_state_dict(reducr.make_selector("rho_loss").state_dict())
    holder = nn.ModuleDict({"selector": reducr.make_selector("train_loss")})
    with pytest.raises(ValueError, match=re.escape(message)):
        holder.load_state_dict(nn.ModuleDict({"selector": reducr.make_selector("rho_loss")}).state_dict())


def test_a_state_without_the_name_of_its_rule_still_loads():
    """By itself, in a module, and in a loader whose counts are fewer, as earlier versions saved them."""
    selector = reducr.make_selector("reducr", num_groups=3)
    selector.set_group_holdout_loss(torch.ones(3))
    old = {name: value for name, value in selector.state_dict().items() if name != "_extra_state"}
    again = reducr.make_selector("reducr", num_groups=3)
    again.load_state_dict(old)
    assert again.group_holdout_loss.tolist() == [1.0] * 3
    nn.ModuleDict({"selector": again}).load_state_dict({f"selector.{name}": value for name, value in old.items()})
    loader = loader_of(batches_of(4))
    passed = iter(loader)
    next(passed), next(passed)
    state = loader.state_dict()
    del state["downsampler"]["selector"]["_extra_state"], state["loader"]["num_skipped"]
    for name in ("length", "batch_size"):
        del state["loader"][name]
    for name in ("num_skipped", "num_refreshes", "largest_batch"):
        del state["downsampler"]["counts"][name]
    again = loader_of(batches_of(4))
    again.load_state_dict(state)
    assert len(list(again)) == 2
    assert again.report().num_steps == 4


def auxiliary_loader():
    reference = model()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.1)
    auxiliary = Auxiliary(models=[AuxiliaryModel(reference, optimizer)])
    return loader_of(batches_of(8), auxiliary=auxiliary, accumulate_steps=4)


def test_nothing_of_a_loaded_state_is_kept():
    """In the middle of an accumulation, with gradients and moments of an auxiliary model."""
    loader = auxiliary_loader()
    for number, batch in enumerate(loader, start=1):
        nn.functional.cross_entropy(loader.model(batch[0]), batch[1]).backward()
        if number == 6:
            break
    state = loader.state_dict()
    assert len(state["downsampler"]["waiting"]) == 2
    kept = copy.deepcopy(state)
    again = auxiliary_loader()
    again.load_state_dict(state)
    list(again)
    again.downsampler.selection.positions.zero_()
    assert str(state) == str(kept)


@pytest.mark.parametrize(
    ("batch_size", "size", "message"),
    [
        (
            10,
            60,
            "after batch 2 of an epoch with 20 examples in a batch; this loader has 10, so it would go on at anoth",
        ),
        (
            20,
            80,
            "after batch 2 of an epoch with 3 batches in an epoch; this loader has 4, so it would go on at another",
        ),
    ],
)
def test_a_place_in_batches_of_another_size_is_refused(batch_size, size, message):
    def loader(size, batch_size):
        return loader_of(DataLoader(TensorDataset(*batch_of(size)), batch_size=batch_size))

    saved = loader(60, 20)
    states = [saved.state_dict() for _ in saved]
    other = loader(size, batch_size)
    with pytest.raises(ValueError, match=re.escape(message)):
        other.load_state_dict(states[1])
    other.load_state_dict(saved.state_dict())  # between two epochs another size is as good
    assert (other.epoch, len(list(other))) == (1, size // batch_size)


# ---- passes


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_over_the_loader_is_refused_and_changes_nothing(context):
    loader = loader_of(batches_of(3))
    before = str(loader.state_dict())

    def evaluate():
        with context():
            return list(loader)

    with pytest.raises(
        RuntimeError, match=r"A SelectiveLoader was iterated without gradients \(torch.no_grad or infer"
    ):
        evaluate()
    assert str(loader.state_dict()) == before


@pytest.mark.parametrize("resumed", [False, True])
def test_a_look_at_the_first_batch_is_not_counted(resumed):
    """Neither a step nor an epoch, and the same is selected after it; also in the rest of an epoch."""
    whole = loader_of(batches_of(5), "uniform", fraction=0.2)
    picked, state = [], None
    for batch in whole:
        train_on(whole, batch)
        picked.append(batch[0])
        if len(picked) == 2:
            state = whole.state_dict()
    loader = loader_of(batches_of(5), "uniform", fraction=0.2)
    if resumed:
        loader.load_state_dict(state)
    looked_at = next(iter(loader))[0]
    first = 2 * resumed
    assert torch.equal(looked_at, picked[first])
    loader.state_dict()
    rest = []
    for batch in loader:
        train_on(loader, batch)
        rest.append(batch[0])
    assert all(torch.equal(one, two) for one, two in zip(rest, picked[first:], strict=True))
    assert (loader.epoch, loader.report().num_steps, loader.report().num_batches) == (1, 5, 5)


def test_a_first_batch_that_is_trained_on_counts():
    """One batch that is trained on again and again, as to try a model."""
    loader = loader_of(batches_of(5))
    batch = next(iter(loader))
    train_on(loader, batch)
    assert len(list(loader)) == 5
    assert (loader.epoch, loader.report().num_steps) == (2, 6)


def test_gradients_count_as_training():
    loader = loader_of(batches_of(5), accumulate_steps=2)
    batch = next(iter(loader))
    nn.functional.cross_entropy(loader.model(batch[0]), batch[1]).backward()
    list(loader)
    assert loader.report().num_batches == 6


def test_a_last_batch_that_a_loop_leaves_untrained_is_not_counted():
    """A loop that ends at a number of steps, which it checks before it trains."""
    loader = loader_of(batches_of(5))
    for step, batch in enumerate(loader):
        if step == 3:
            break
        train_on(loader, batch)
    assert loader.state_dict()["downsampler"]["counts"]["num_steps"] == 3
    assert loader.report().num_batches == 3


def test_what_has_accumulated_in_a_pass_that_is_left_makes_a_step():
    """So that the next pass begins with a whole step, as the loop does, which counts from its beginning."""
    loader = loader_of(batches_of(8), accumulate_steps=4)
    for number, batch in enumerate(loader, start=1):
        nn.functional.cross_entropy(loader.model(batch[0]), batch[1]).backward()
        if number == 6:
            break
    assert (loader.report().num_steps, loader.downsampler.num_waiting) == (1, 2)
    steps = [loader.report().num_steps for _ in loader]
    assert steps == [2, 2, 2, 2, 3, 3, 3, 3]


def test_a_pass_that_is_left_refreshes_at_its_end():
    loader = loader_of(batches_of(5), "drop", holdout=[batch_of(9)], refresh_steps="epoch")

    def train():
        for number, batch in enumerate(loader):
            train_on(loader, batch)
            if number == 1:
                break

    with pytest.warns(UserWarning, match="A pass was left after 1 steps without a refresh"):
        train()
    assert loader.report().num_refreshes == 0
    next(iter(loader))
    assert loader.report().num_refreshes == 1


def test_a_discarded_selection_leaves_the_report_as_it_was():
    extra = [batch_of(2, seed=seed) for seed in range(5)]
    core = Downsampler("train_loss", auxiliary=Auxiliary(extra_batches=extra), fraction=0.2)
    net = model()
    core.prepare(net)
    core.select(batch_of(), net)
    core.step(net)

    def counted():
        return str({name: value for name, value in core.log.state_dict().items() if name != "seconds"})

    before = counted()
    discarded = core.select(batch_of(seed=1), net)
    assert counted() != before
    core.discard()
    assert counted() == before
    again = core.select(batch_of(seed=1), net)
    assert torch.equal(discarded[0][-2:], again[0][-2:])  # its extra examples come again
    assert torch.equal(again[0][-2:], extra[1][0])


# ---- batches


def test_a_batch_of_another_structure_than_the_first_is_refused():
    inputs, targets = batch_of()
    core = Downsampler("train_loss")
    core.select((inputs, targets), model())
    message = (
        "Every batch must have the structure of the first. Its parts were read at input 0, target 1; this tuple has "
        "them at index 0, input 1, target 2."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        core.select((torch.arange(20), inputs, targets), model())
    core = Downsampler("train_loss")
    core.select({"x": inputs, "label": targets}, ByName())
    with pytest.raises(ValueError, match="this dict has them at target 'label', group 'group'"):
        core.select({"x": inputs, "label": targets, "group": targets}, ByName())


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, input=None, x=None):  # noqa: A002
        return self.linear(x)


def test_input_and_target_with_something_third_are_not_index_input_and_target():
    inputs, targets = batch_of()
    meta = torch.zeros(20, 2)
    message = (
        "A tuple of 3 is read as (index, input, target), and this one begins with torch.float32 (20, 4), which is no "
        "index of its examples. Pass `spec=reducr.BatchSpec(input=0, target=1)` if it begins with input and target, "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("train_loss").select((inputs, targets, meta), model())
    core = Downsampler("train_loss", spec=BatchSpec(input=0, target=1))
    assert len(core.select((inputs, targets, meta), model())[2]) == 2


def sentences(size, length=16):
    return [[f"word {row} {column}" for column in range(length)] for row in range(size)]


@pytest.mark.parametrize("tensors", [False, True])
def test_sixteen_sentences_of_sixteen_words_stay_with_their_targets(tensors):
    """After batches of another size have shown that the list has one entry per example."""

    def batch(size):
        inputs = torch.arange(size).float()[:, None].expand(size, 4)
        tokens = [torch.full((16,), row) for row in range(size)] if tensors else sentences(size)
        return inputs, torch.arange(size) % 3, tokens

    core = Downsampler("uniform", spec=BatchSpec(input=0, target=1), fraction=0.25)
    for size in (20, 16):
        inputs, _, tokens = core.select(batch(size), model())
        rows = inputs[:, 0].long().tolist()
        assert len(tokens) == len(rows) == size // 4
        for row, entry in zip(rows, tokens, strict=True):
            assert (
                torch.equal(entry, torch.full((16,), row)) if tensors else entry == sentences(16)[row % 16] or row > 15
            )


def test_a_first_batch_that_may_be_read_in_two_ways_is_refused():
    inputs, targets = batch_of(16)
    batch = inputs, targets, sentences(16)
    message = (
        "batch[2] is a list of 16 entries with 16 rows each, in a batch of 16 examples: it may hold one entry per "
        "example, or columns. Say which with `spec=reducr.BatchSpec(..., lists='examples')` or `lists='columns'`"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("uniform", spec=BatchSpec(input=0, target=1)).select(batch, model())
    for lists, (num_entries, num_words) in {"examples": (4, 16), "columns": (16, 4)}.items():
        core = Downsampler("uniform", spec=BatchSpec(input=0, target=1, lists=lists), fraction=0.25)
        tokens = core.select(batch, model())[2]
        assert (len(tokens), {len(entry) for entry in tokens}) == (num_entries, {num_words})
    with pytest.raises(ValueError, match="unknown lists 'rows'"):
        BatchSpec(target=1, lists="rows")


def test_columns_stay_columns_in_a_batch_of_their_number():
    """Two views of every example, and a last batch of two."""
    kinds = ListKinds()
    for size, rows in ((5, [0, 3]), (2, [1])):
        views = [torch.arange(size), 10 + torch.arange(size)]
        taken = index_batch({"views": views}, torch.tensor(rows), num_examples=size, kinds=kinds)
        assert [view.tolist() for view in taken["views"]] == [rows, [10 + row for row in rows]]


def test_extra_examples_are_appended_to_a_list_of_examples():
    """Three sentences of three words are not three columns, once a batch of another size has shown it."""
    kinds = ListKinds()
    index_batch([torch.zeros(5), sentences(5, 3)], torch.arange(3), num_examples=5, kinds=kinds)
    first, second = [torch.zeros(3), sentences(3, 3)], [torch.ones(2), sentences(2, 3)]
    joined = concatenate(first, second, num_examples=3, kinds=kinds)
    assert joined[1] == sentences(3, 3) + sentences(2, 3)


# ---- models and targets


class Returns(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.weight * torch.zeros(len(inputs), *self.shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (7, 50),
            "For tokens or pixels pass `loss=`, a function of (output, target) that returns the mean loss of each",
        ),
        ((3, 8, 8), "got torch.float32 (20, 3, 8, 8). For tokens or pixels pass `loss=`"),
        ((1,), "binary_cross_entropy_with_logits(output.squeeze(1), target.float(), reduction='none')`"),
        ((), "binary_cross_entropy_with_logits(output, target.float(), reduction='none')`; for a regression"),
    ],
)
@pytest.mark.parametrize("place", ["candidates", "holdout"])
def test_a_model_that_needs_a_loss_is_told_which(shape, message, place):
    options = {"holdout": [batch_of()]} if place == "holdout" else {}
    core = Downsampler("train_loss", **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        core.prepare(Returns(shape)), core.select(batch_of(), Returns(shape))


def test_bool_targets_are_two_classes():
    inputs, targets = batch_of()
    is_first, net = targets == 0, nn.Linear(4, 2)
    core = Downsampler("class_balanced", holdout=[(inputs, is_first)], fraction=0.5)
    core.prepare(net)
    selected = core.select((inputs, is_first), net)
    assert selected[1].dtype == torch.bool
    assert int(selected[1].sum()) == core.report().group_counts[1] > 0
    one_logit = Downsampler(
        "train_loss",
        loss=lambda output, target: nn.functional.binary_cross_entropy_with_logits(
            output.squeeze(1), target.float(), reduction="none"
        ),
    )
    assert len(one_logit.select((inputs, is_first), nn.Linear(4, 1))[1]) == 2


def test_a_batch_norm_that_would_score_one_example_says_so():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    message = "which cannot score 1 example in mode 'train' (Expected more than 1 value per channel"
    core = Downsampler("train_loss", scoring=Scoring(batch_size=1))
    with pytest.raises(ValueError, match=re.escape(message)):
        core.select(batch_of(), net)
    core = Downsampler("train_loss", scoring=Scoring(batch_size=1, mode="eval"))
    assert len(core.select(batch_of(), net)[1]) == 2


def test_a_model_that_takes_the_whole_dict_says_how():
    class TakesBatch(nn.Module):
        def forward(self, batch):
            return batch["x"]

    inputs, targets = batch_of()
    message = (
        "The model was called by name with the entries of the batch that are not its target: x. It does not take them "
        "so ("
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("train_loss").select({"x": inputs, "label": targets}, TakesBatch())
