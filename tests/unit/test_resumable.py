"""A loader that is resumed anywhere gives what it would have given, and leaves the random numbers of training alone."""

import io
import random
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from reducr._internal.rng import random_state, set_random_state
from reducr.data import ExampleDataset, ExampleLoader
from reducr.streaming import ShardedStream
from reducr.training.resumable import Resumable

NUM_POINTS, BATCH_SIZE, NUM_EPOCHS = 22, 4, 3
NUM_BATCHES = 6  # of an epoch, the last one shorter


class Noisy(Dataset):
    """Points that draw from every global generator when they are read."""

    def __len__(self):
        return NUM_POINTS

    def __getitem__(self, position):
        return position + torch.rand(()) / 2 + random.random() / 8 + float(np.random.rand()) / 8  # noqa: NPY002


class Stream(IterableDataset):
    """Points without index or length, shared out over workers; a new order every epoch, drawn or by its number."""

    def __init__(self, *, knows_epoch=False):
        self.epoch = 0
        if knows_epoch:
            self.set_epoch = self._set_epoch

    def _set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = torch.randperm(NUM_POINTS, generator=torch.Generator().manual_seed(self.epoch))
        for position in order.tolist()[first::step]:
            yield position + torch.rand(()) / 2


def generator():
    return torch.Generator().manual_seed(7)


def points(**options):
    return DataLoader(TensorDataset(torch.arange(NUM_POINTS)), batch_size=BATCH_SIZE, **options)


def noisy(**options):
    return DataLoader(Noisy(), batch_size=BATCH_SIZE, **options)


def weights():
    return torch.linspace(0.1, 1.0, NUM_POINTS)


def point_loader():
    data = ExampleDataset(torch.arange(NUM_POINTS), torch.zeros(NUM_POINTS), num_classes=1)
    return ExampleLoader(data, batch_size=BATCH_SIZE, shuffle=True, seed=3)


def sharded_stream():
    shards = [list(range(start, start + 5)) for start in range(0, NUM_POINTS, 5)]
    return DataLoader(ShardedStream(shards, read=iter, shuffle_shards=True), batch_size=BATCH_SIZE)


LOADERS = {
    "a list": lambda: [torch.arange(start, start + 4) for start in range(0, 24, 4)],
    "in order": points,
    "shuffled": lambda: points(shuffle=True),
    "shuffled by a generator": lambda: points(shuffle=True, generator=generator()),
    "last batch dropped": lambda: points(shuffle=True, drop_last=True),
    "random points": lambda: noisy(shuffle=True),
    "with replacement": lambda: points(sampler=RandomSampler(range(NUM_POINTS), replacement=True, num_samples=70)),
    "with replacement by a generator": lambda: points(
        sampler=RandomSampler(range(NUM_POINTS), replacement=True, num_samples=70, generator=generator())
    ),
    "weighted": lambda: points(sampler=WeightedRandomSampler(weights(), NUM_POINTS)),
    "weighted by a generator": lambda: points(
        sampler=WeightedRandomSampler(weights(), NUM_POINTS, generator=generator())
    ),
    "batches of a sampler": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(NUM_POINTS)), 5, drop_last=False)
    ),
    "batches of a sampler by a generator": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(NUM_POINTS), generator=generator()), 5, drop_last=True)
    ),
    "one of two ranks": lambda: points(sampler=DistributedSampler(range(NUM_POINTS), 2, 1, shuffle=True, seed=5)),
    "a stream": lambda: DataLoader(Stream(), batch_size=BATCH_SIZE),
    "a stream that knows the epoch": lambda: DataLoader(Stream(knows_epoch=True), batch_size=BATCH_SIZE),
    "a point loader": point_loader,
    "shards": sharded_stream,
}
WITH_WORKERS = {
    "random points": lambda: noisy(shuffle=True, num_workers=2),
    "by a generator": lambda: noisy(shuffle=True, num_workers=2, generator=generator()),
    "a stream": lambda: DataLoader(Stream(knows_epoch=True), batch_size=BATCH_SIZE, num_workers=2),
    "shards": lambda: DataLoader(
        ShardedStream([list(range(9)), list(range(9, NUM_POINTS))], read=iter), batch_size=BATCH_SIZE, num_workers=2
    ),
}


def trained_on(loader, *, num_epochs=NUM_EPOCHS):
    """Every batch, with a number that a model's dropout might draw after it."""
    while loader.epoch < num_epochs:
        for batch in loader:
            parts = batch if isinstance(batch, list | tuple) else [batch]
            flat = torch.cat([part.flatten().double() for part in parts])
            yield loader.epoch, flat.tolist(), float(torch.rand(()) + random.random() + np.random.rand())  # noqa: NPY002


def prepared(make, **options):
    """What makes the loader, and gives it to accelerate."""
    return lambda: Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options)).prepare(make())


def seed_all(seed):
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)


def from_file(state):
    """As a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def state_after(make, num_batches):
    """Of a loader that has just given its ``num_batches``-th batch, and of the random numbers."""
    seed_all(0)
    loader = Resumable(make())
    passed = trained_on(loader)
    for _ in range(num_batches):
        next(passed)
    return from_file({"loader": loader.state_dict(), "random": random_state()})


def resumed(make, state):
    seed_all(99)
    loader = Resumable(make())
    loader.load_state_dict(state["loader"])
    set_random_state(state["random"])
    return loader


def assert_resumes(make, *, after):
    seed_all(0)
    whole = list(trained_on(Resumable(make())))
    assert len({str(row) for row in whole}) == len(whole)
    for num_batches in after(len(whole)):
        state = state_after(make, num_batches)
        assert list(trained_on(resumed(make, state))) == whole[num_batches:], num_batches


def assert_resumes_at_the_end_of_an_epoch(make):
    seed_all(0)
    loader = Resumable(make())
    list(loader)
    state = from_file({"loader": loader.state_dict(), "random": random_state()})
    rest = list(trained_on(loader))
    assert rest[0][0] == 1
    assert list(trained_on(resumed(make, state))) == rest


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_goes_on_from_every_place_of_every_epoch(name):
    """After every batch, the last ones of epochs among them."""
    assert_resumes(LOADERS[name], after=lambda number: range(number + 1))


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_goes_on_from_the_end_of_an_epoch(name):
    """As of a loop that saves after each: the order of the next epoch is drawn from where the last draw left off."""
    assert_resumes_at_the_end_of_an_epoch(LOADERS[name])


@pytest.mark.parametrize("name", WITH_WORKERS)
def test_a_loader_with_workers_goes_on(name):
    assert_resumes(WITH_WORKERS[name], after=lambda number: [2, number // 3, number - 2])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("by_generator", [False, True])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_stateful_loader_of_torchdata_is_asked_for_its_place(num_workers, by_generator):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make():
        return StatefulDataLoader(
            TensorDataset(torch.arange(NUM_POINTS)),
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_workers=num_workers,
            generator=generator() if by_generator else None,
        )

    every = (lambda number: range(number + 1)) if num_workers == 0 else (lambda number: [2, number // 3, number - 2])
    assert_resumes(make, after=every)
    state = state_after(make, 2)["loader"]
    assert "own" in state


@pytest.mark.parametrize("by_generator", [False, True])
def test_persistent_workers_keep_the_order_of_points(by_generator):
    """What they draw themselves they draw on from one epoch to the next, so it is not that again."""

    def make():
        own = generator() if by_generator else None
        return points(shuffle=True, num_workers=1, persistent_workers=True, generator=own)

    assert_resumes(make, after=lambda number: [2, number - 2])
    assert_resumes_at_the_end_of_an_epoch(make)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    "options", [{}, {"use_seedable_sampler": True, "data_seed": 3}, {"dispatch_batches": True}], ids=str
)
def test_a_loader_that_accelerate_has_prepared_goes_on(name, options):
    """One that reads a batch ahead, whose points draw random numbers before those of the model."""
    make = prepared(LOADERS[name], **options)
    assert_resumes(make, after=lambda number: range(0, number + 1, 2))


@pytest.mark.parametrize("name", WITH_WORKERS)
def test_a_loader_with_workers_that_accelerate_has_prepared_goes_on(name):
    assert_resumes(prepared(WITH_WORKERS[name]), after=lambda number: [number // 3])


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_loader_that_accelerate_has_prepared_with_a_place_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Leave that out: the place is kept here, exactly"):
        Resumable(prepared(points, use_stateful_dataloader=True)())


def test_the_state_of_a_loaded_loader_is_the_one_loaded_until_it_is_iterated():
    state = state_after(LOADERS["shuffled"], 8)
    assert resumed(LOADERS["shuffled"], state).state_dict() == state["loader"]


def test_before_the_first_batch_and_after_the_last_there_is_no_place_in_an_epoch():
    loader = Resumable(points())
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"], loader.state_dict()["start"]) == (0, 0, None)
    assert len(list(loader)) == len(loader) == NUM_BATCHES
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"], loader.state_dict()["start"]) == (1, 0, None)


def test_after_all_batches_of_an_epoch_the_rest_of_it_is_empty():
    """The end of the epoch is still to come: what a loop does there is done after a resume."""
    loader = resumed(LOADERS["shuffled"], state_after(LOADERS["shuffled"], NUM_BATCHES))
    assert (loader.epoch, loader.position) == (0, NUM_BATCHES)
    assert list(loader) == []
    assert (loader.epoch, loader.position) == (1, 0)
    assert len(list(loader)) == NUM_BATCHES


@pytest.mark.parametrize("name", ["shuffled", "one of two ranks", "a point loader"])
def test_a_pass_that_is_left_early_counts_as_an_epoch(name):
    seed_all(0)
    loader = Resumable(LOADERS[name]())
    for _ in loader:
        break
    assert (loader.epoch, loader.position) == (0, 1)
    second = [str(batch) for batch in loader]
    assert (loader.epoch, loader.position) == (2, 0)
    seed_all(0)
    whole = Resumable(LOADERS[name]())
    if name == "shuffled":  # draws the order of an epoch when it begins
        iter(iter(whole).__next__, None)
        next(iter(whole))
    else:
        list(whole)
    assert [str(batch) for batch in whole] == second


def test_a_chosen_epoch_begins_at_its_start_and_the_present_one_goes_on():
    state = state_after(LOADERS["one of two ranks"], 1)
    whole = Resumable(LOADERS["one of two ranks"]())
    epochs = [[str(batch) for batch in whole] for _ in range(3)]
    same = resumed(LOADERS["one of two ranks"], state)
    same.set_epoch(0)
    assert [str(batch) for batch in same] == epochs[0][1:]
    other = resumed(LOADERS["one of two ranks"], state)
    other.set_epoch(2)
    assert [str(batch) for batch in other] == epochs[2]
    assert other.epoch == 3


def test_shorter_data_is_refused():
    state = state_after(points, 5)
    shorter = Resumable(DataLoader(TensorDataset(torch.arange(11)), batch_size=BATCH_SIZE))
    shorter.load_state_dict(state["loader"])
    message = (
        "the loader ended after 3 batches, but 5 of this epoch have been seen: the data is not that of the run that "
        "goes on. Give the loader the same data and batch size."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(shorter))
    loader = Resumable(ExampleLoader(point_loader().data.take(torch.arange(11)), batch_size=4, shuffle=True, seed=3))
    loader.load_state_dict(state_after(point_loader, 5)["loader"])
    with pytest.raises(
        ValueError, match="The state is from a loader with different batches: num_points is 22 in the state"
    ):
        next(iter(loader))


def test_other_generators_than_the_run_had_are_refused():
    state = state_after(LOADERS["shuffled by a generator"], 2)["loader"]
    message = "the loader and its samplers have 0 generators of their own, and had 1 in the run that goes on"
    with pytest.raises(ValueError, match=message):
        Resumable(LOADERS["shuffled"]()).load_state_dict(state)


def test_the_place_of_a_stateful_loader_is_not_given_to_another():
    loader = Resumable(WITH_WORKERS["shards"]())
    loader.load_state_dict(state_after(LOADERS["shards"], 2)["loader"])
    with pytest.raises(ValueError, match=r"this DataLoader keeps none.* with the same num_workers"):
        next(iter(loader))


def test_a_stream_has_no_length():
    with pytest.raises(TypeError, match="has no len"):
        len(Resumable(DataLoader(Stream(), batch_size=BATCH_SIZE)))
