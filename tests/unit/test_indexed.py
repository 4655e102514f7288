"""``indexed``: samples and batches are what they were, and carry the index of their examples."""

import copy
import pickle
import re
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

import reducr
from reducr.batch import INDEX_KEY, BatchReader
from reducr.batch.carried import index_of, with_index, without_index
from reducr.batch.nested import index_batch, send_to_device

SIZE = 40


class Point(NamedTuple):
    input: torch.Tensor
    target: int


class Samples(Dataset):
    """SIZE samples of one kind, whose input begins with the position."""

    unit = "metres"

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return SIZE

    def __getitem__(self, position):
        inputs, target = torch.tensor([float(position), 1.0]), position % 3
        return {
            "tuple": (inputs, target),
            "list": [inputs, target],
            "named": Point(inputs, target),
            "dict": {"input": inputs, "target": target},
            "group": (inputs, target, position % 2),
            "own index": (position + 100 - 100, inputs, target),
            "nested": ({"a": inputs, "b": (inputs, inputs)}, target),
        }[self.kind]


KINDS = ["tuple", "list", "named", "dict", "group", "own index", "nested"]


def positions_in(batch):
    """The positions that the inputs of a batch begin with."""
    inputs = BatchReader()(batch).input
    inputs = inputs["a"] if isinstance(inputs, dict) else inputs
    return inputs[:, 0].long()


def picklable_collate(samples):
    inputs, targets = zip(*samples, strict=True)
    return {"input": torch.stack(inputs), "target": torch.tensor(targets)}


@pytest.mark.parametrize(
    ("kind", "num_workers"), [*((kind, 0) for kind in KINDS), ("tuple", 2), ("named", 2), ("dict", 2)]
)
def test_batches_are_what_they_were_and_carry_the_index(kind, num_workers):
    options = {"batch_size": 7, "shuffle": True, "num_workers": num_workers}
    plain = DataLoader(Samples(kind), generator=torch.Generator().manual_seed(0), **options)
    loader = DataLoader(reducr.indexed(Samples(kind)), generator=torch.Generator().manual_seed(0), **options)
    seen = []
    for expected, batch in zip(plain, loader, strict=True):
        assert index_of(batch).dtype == torch.int64
        assert torch.equal(index_of(batch), positions_in(batch))
        assert torch.equal(BatchReader()(batch).index, index_of(batch))
        without = without_index(batch)
        assert type(without) is type(expected)
        assert str(without) == str(expected)
        if kind != "dict":
            assert len(batch) == len(expected)
        seen.append(index_of(batch))
    assert torch.cat(seen).sort().values.tolist() == list(range(SIZE))


@pytest.mark.parametrize(("kind", "has_group"), [("tuple", False), ("group", True), ("own index", False)])
def test_parts_beside_the_index(kind, has_group):
    batch = BatchReader()(next(iter(DataLoader(reducr.indexed(Samples(kind)), batch_size=6))))
    assert batch.index.tolist() == list(range(6))
    assert batch.target.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.group.tolist() == ([0, 1, 0, 1, 0, 1] if has_group else batch.target.tolist())


def test_a_spec_of_the_user_keeps_its_index():
    data = reducr.indexed(Samples("own index"))
    batch = next(iter(DataLoader(data, batch_size=4)))
    read = BatchReader(reducr.BatchSpec(index=lambda batch: batch[0] + 1000, input=1, target=2))
    assert read(batch).index.tolist() == [1000, 1001, 1002, 1003]
    assert BatchReader(reducr.BatchSpec(input=1, target=2))(batch).index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_can_be_indexed_moved_pickled_and_copied(kind):
    batch = next(iter(DataLoader(reducr.indexed(Samples(kind)), batch_size=6)))
    part = index_batch(batch, torch.tensor([4, 1]), num_examples=6)
    assert index_of(part).tolist() == positions_in(part).tolist() == [4, 1]
    for same in (
        pickle.loads(pickle.dumps(batch)),
        copy.copy(batch),
        copy.deepcopy(batch),
        send_to_device(batch, torch.device("cpu")),
    ):
        assert type(same) is type(batch)
        assert index_of(same).tolist() == list(range(6))
        assert str(without_index(same)) == str(without_index(batch))
    moved = send_to_device(batch, torch.device("meta"))
    assert index_of(moved).device.type == "meta"
    if kind != "dict":
        assert index_of(batch.to("meta")).device.type == "meta"


def test_the_index_is_that_of_the_outermost_data_set_that_was_wrapped():
    data = reducr.indexed(Samples("tuple"))
    first, second = random_split(data, [30, 10], generator=torch.Generator().manual_seed(0))
    for part in (first, second):
        batches = list(DataLoader(part, batch_size=5))
        assert torch.cat([index_of(batch) for batch in batches]).tolist() == list(part.indices)
        assert torch.cat([positions_in(batch) for batch in batches]).tolist() == list(part.indices)
    again = reducr.indexed(Subset(data, [5, 3]))
    assert [index_of(sample) for sample in again] == [0, 1]
    assert [int(inputs[0]) for inputs, _ in again] == [5, 3]
    assert len(again[0]) == 2


def test_several_samples_are_read_at_once_where_the_data_set_can():
    class Fast(Samples):
        def __getitems__(self, positions):
            self.calls.append(list(positions))
            return [self[position] for position in positions]

    data = Fast("tuple")
    data.calls = []
    batch = next(iter(DataLoader(reducr.indexed(data), batch_size=4)))
    assert data.calls == [[0, 1, 2, 3]]
    assert index_of(batch).tolist() == [0, 1, 2, 3]


def test_attributes_are_those_of_the_data_set():
    data = reducr.indexed(Samples("tuple"))
    assert (data.unit, data.kind, len(data)) == ("metres", "tuple", SIZE)
    with pytest.raises(AttributeError, match="classes"):
        _ = data.classes
    restored = pickle.loads(pickle.dumps(data))
    assert (restored.unit, restored[-1].example_index) == ("metres", SIZE - 1)
    assert copy.deepcopy(data)[3].example_index == 3


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_another_collator_sees_plain_samples_and_its_batch_carries_the_index(kind):
    seen = []

    def collate(samples):
        seen.extend(samples)
        if kind == "dict":
            samples = [(sample["input"], sample["target"]) for sample in samples]
        return picklable_collate(samples) if kind == "dict" else list(picklable_collate(samples).values())

    data = reducr.indexed(Samples(kind))
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collating(collate))))
    assert not any(index_of(sample) for sample in seen)
    assert type(seen[0]) is (dict if kind == "dict" else tuple)
    assert index_of(batch).tolist() == [0, 1, 2, 3]
    if kind == "dict":
        assert set(batch) == {"input", "target", INDEX_KEY}


def test_a_collator_around_another_works_in_workers():
    data = reducr.indexed(Samples("tuple"))
    loader = DataLoader(data, batch_size=8, num_workers=2, collate_fn=data.collating(picklable_collate))
    assert torch.cat([index_of(batch) for batch in loader]).tolist() == list(range(SIZE))


def test_samples_without_an_index_among_others_are_refused():
    mixed = ConcatDataset([reducr.indexed(Samples("tuple")), Samples("tuple")])
    data = reducr.indexed(Samples("tuple"))
    for collate_fn in (None, data.collating(picklable_collate)):
        loader = DataLoader(mixed, batch_sampler=[[0, 60]], collate_fn=collate_fn)
        with pytest.raises(ValueError, match=r"1 of 2 samples of a batch carry no index. Wrap the whole data set"):
            next(iter(loader))


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


@pytest.mark.parametrize("data", [Stream(), iter([1]), 3])
def test_a_stream_is_refused(data):
    with pytest.raises(TypeError, match=f"needs a data set with a length and positions; got {type(data).__name__}"):
        reducr.indexed(data)


def test_samples_of_another_kind_are_refused():
    with pytest.raises(TypeError, match=r"samples that are tuples, lists or dicts.*; got a Tensor"):
        reducr.indexed(torch.zeros(3, 2))[0]
    with pytest.raises(TypeError, match="`collate_fn` must be a function of a list of samples; got int"):
        reducr.indexed([(1, 2)]).collating(3)


def test_with_index_changes_nothing():
    sample = {"x": 1}
    assert with_index(sample, 3) == {"x": 1, INDEX_KEY: 3}
    assert sample == {"x": 1}
    pair = (1, 2)
    assert with_index(with_index(pair, 3), 4).example_index == 4
    assert not hasattr(pair, "example_index")


# ---- in a loop

INPUTS = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS.argmax(dim=1)


def make_model():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


class Named(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, position):
        return {"input": INPUTS[position], "label": int(TARGETS[position])}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_a_loop_gets_batches_without_the_index(kind):
    data = reducr.indexed(TensorDataset(INPUTS, TARGETS) if kind == "tuple" else Named())
    loader = reducr.SelectiveLoader(
        DataLoader(data, batch_size=20, shuffle=True),
        make_model(),
        reducr.make_selector("train_loss", num_groups=3),
        fraction=0.3,
        scoring=reducr.Scoring(budget=0.5),  # needs an index
    )
    for batch in loader:
        chosen = loader.downsampler.selected.index
        assert index_of(batch) is None
        if kind == "tuple":
            inputs, targets = batch
            assert type(batch) is list
        else:
            assert set(batch) == {"input", "label"}
            inputs, targets = batch["input"], batch["label"]
        assert torch.equal(inputs, INPUTS[chosen])
        assert torch.equal(targets, TARGETS[chosen])


def test_extra_batches_go_with_indexed_candidates():
    data, extra = reducr.indexed(TensorDataset(INPUTS, TARGETS)), [[INPUTS[:2], TARGETS[:2]]]
    loader = reducr.SelectiveLoader(
        DataLoader(data, batch_size=20),
        make_model(),
        reducr.make_selector("train_loss", num_groups=3),
        fraction=0.1,
        auxiliary=reducr.Auxiliary(extra_batches=extra),
    )
    assert [len(targets) for _, targets in loader] == [4, 4]


def test_a_resume_goes_on_with_the_same_examples():
    def make_loader():
        data = reducr.indexed(TensorDataset(INPUTS, TARGETS))
        loader = DataLoader(data, batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(1))
        selector = reducr.make_selector("train_loss", num_groups=3)
        return reducr.SelectiveLoader(loader, make_model(), selector, fraction=0.3)

    def indices(loader):
        return [loader.downsampler.selected.index.tolist() for _ in loader]

    whole = indices(make_loader())
    first = make_loader()
    iterator = iter(first)
    next(iterator), next(iterator)
    state = first.state_dict()
    second = make_loader()
    second.load_state_dict(state)
    assert indices(second) == whole[2:]


def test_the_design_runs_as_it_is_written():
    train_dataset = TensorDataset(INPUTS, TARGETS)
    reference = make_model()
    with torch.no_grad():
        reference.weight.copy_(4 * torch.eye(3))
    irreducible = reducr.Reference(reference).tabulate(train_dataset)
    train_dataset = reducr.indexed(train_dataset)
    train = DataLoader(train_dataset, batch_size=20, shuffle=True)
    clean = DataLoader(TensorDataset(INPUTS[:9], TARGETS[:9]), batch_size=9)
    selector = reducr.make_selector("priority_sampling", num_groups=3)
    loader = reducr.SelectiveLoader(train, make_model(), selector, irreducible, fraction=0.1, holdout=clean)
    assert [tuple(inputs.shape) + tuple(targets.shape) for inputs, targets in loader] == [(2, 3, 2), (2, 3, 2)]
    assert [tuple(inputs.shape) for inputs, targets in DataLoader(train_dataset, batch_size=20)] == [(20, 3)] * 2


def test_a_batch_without_index_says_how_to_get_one():
    reference = reducr.Reference(make_model()).tabulate(TensorDataset(INPUTS, TARGETS))
    loader = reducr.SelectiveLoader(
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=20),
        make_model(),
        reducr.make_selector("rho_loss", num_groups=3),
        reference,
    )
    with pytest.raises(ValueError, match=re.escape("Wrap the data set, reducr.indexed(dataset)")):
        next(iter(loader))
