"""A resumed loader yields the remaining batches, and does not change the random numbers of training."""

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

NUM_EXAMPLES, BATCH_SIZE, NUM_EPOCHS = 22, 4, 3
NUM_BATCHES = 6  # per epoch; the last one is shorter


class Noisy(Dataset):
    """Examples that draw from every global generator when they are read."""

    def __len__(self):
        return NUM_EXAMPLES

    def __getitem__(self, position):
        return position + torch.rand(()) / 2 + random.random() / 8 + float(np.random.rand()) / 8  # noqa: NPY002


class Stream(IterableDataset):
    """Examples without index or length, divided over workers; with ``knows_epoch``, a new order every epoch."""

    def __init__(self, *, knows_epoch=False):
        self.epoch = 0
        if knows_epoch:
            self.set_epoch = self._set_epoch

    def _set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = torch.randperm(NUM_EXAMPLES, generator=torch.Generator().manual_seed(self.epoch))
        for position in order.tolist()[first::step]:
            yield position + torch.rand(()) / 2


def generator():
    return torch.Generator().manual_seed(7)


def loader_in_order(**options):
    return DataLoader(TensorDataset(torch.arange(NUM_EXAMPLES)), batch_size=BATCH_SIZE, **options)


def noisy_loader(**options):
    return DataLoader(Noisy(), batch_size=BATCH_SIZE, **options)


def weights():
    return torch.linspace(0.1, 1.0, NUM_EXAMPLES)


def example_loader():
    data = ExampleDataset(torch.arange(NUM_EXAMPLES), torch.zeros(NUM_EXAMPLES), num_classes=1)
    return ExampleLoader(data, batch_size=BATCH_SIZE, shuffle=True, seed=3)


def sharded_stream():
    shards = [list(range(start, start + 5)) for start in range(0, NUM_EXAMPLES, 5)]
    return DataLoader(ShardedStream(shards, read=iter, shuffle_shards=True), batch_size=BATCH_SIZE)


LOADERS = {
    "a list": lambda: [torch.arange(start, start + 4) for start in range(0, 24, 4)],
    "in order": loader_in_order,
    "shuffled": lambda: loader_in_order(shuffle=True),
    "shuffled by a generator": lambda: loader_in_order(shuffle=True, generator=generator()),
    "last batch dropped": lambda: loader_in_order(shuffle=True, drop_last=True),
    "random examples": lambda: noisy_loader(shuffle=True),
    "with replacement": lambda: loader_in_order(
        sampler=RandomSampler(range(NUM_EXAMPLES), replacement=True, num_samples=70)
    ),
    "with replacement by a generator": lambda: loader_in_order(
        sampler=RandomSampler(range(NUM_EXAMPLES), replacement=True, num_samples=70, generator=generator())
    ),
    "weighted": lambda: loader_in_order(sampler=WeightedRandomSampler(weights(), NUM_EXAMPLES)),
    "weighted by a generator": lambda: loader_in_order(
        sampler=WeightedRandomSampler(weights(), NUM_EXAMPLES, generator=generator())
    ),
    "batches of a sampler": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(NUM_EXAMPLES)), 5, drop_last=False)
    ),
    "batches of a sampler by a generator": lambda: DataLoader(
        Noisy(),
        batch_sampler=BatchSampler(RandomSampler(range(NUM_EXAMPLES), generator=generator()), 5, drop_last=True),
    ),
    "one of two ranks": lambda: loader_in_order(
        sampler=DistributedSampler(range(NUM_EXAMPLES), 2, 1, shuffle=True, seed=5)
    ),
    "a stream": lambda: DataLoader(Stream(), batch_size=BATCH_SIZE),
    "a stream that knows the epoch": lambda: DataLoader(Stream(knows_epoch=True), batch_size=BATCH_SIZE),
    "an example loader": example_loader,
    "shards": sharded_stream,
}
WITH_WORKERS = {
    "random examples": lambda: noisy_loader(shuffle=True, num_workers=2),
    "by a generator": lambda: noisy_loader(shuffle=True, num_workers=2, generator=generator()),
    "a stream": lambda: DataLoader(Stream(knows_epoch=True), batch_size=BATCH_SIZE, num_workers=2),
    "shards": lambda: DataLoader(
        ShardedStream([list(range(9)), list(range(9, NUM_EXAMPLES))], read=iter), batch_size=BATCH_SIZE, num_workers=2
    ),
}


def train(loader, *, num_epochs=NUM_EPOCHS):
    """Yield every batch with a random number drawn after it, as dropout would."""
    while loader.epoch < num_epochs:
        for batch in loader:
            parts = batch if isinstance(batch, list | tuple) else [batch]
            flat = torch.cat([part.flatten().double() for part in parts])
            yield loader.epoch, flat.tolist(), float(torch.rand(()) + random.random() + np.random.rand())  # noqa: NPY002


def prepared(make, **options):
    """A function that makes the loader and prepares it with accelerate."""
    return lambda: Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options)).prepare(make())


def seed_all(seed):
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)


def from_file(state):
    """The state after saving and loading a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def state_after(make, num_batches):
    """State of a loader that has just yielded its ``num_batches``-th batch, and the random states."""
    seed_all(0)
    loader = Resumable(make())
    iterator = train(loader)
    for _ in range(num_batches):
        next(iterator)
    return from_file({"loader": loader.state_dict(), "random": random_state()})


def resumed(make, state):
    seed_all(99)
    loader = Resumable(make())
    loader.load_state_dict(state["loader"])
    set_random_state(state["random"])
    return loader


def assert_resumes(make, *, after):
    seed_all(0)
    whole = list(train(Resumable(make())))
    assert len({str(row) for row in whole}) == len(whole)
    for num_batches in after(len(whole)):
        state = state_after(make, num_batches)
        assert list(train(resumed(make, state))) == whole[num_batches:], num_batches


def assert_resumes_at_the_end_of_an_epoch(make):
    seed_all(0)
    loader = Resumable(make())
    list(loader)
    state = from_file({"loader": loader.state_dict(), "random": random_state()})
    rest = list(train(loader))
    assert rest[0][0] == 1
    assert list(train(resumed(make, state))) == rest


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_resumes_after_every_batch(name):
    """Including the last batch of each epoch."""
    assert_resumes(LOADERS[name], after=lambda number: range(number + 1))


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_resumes_from_the_end_of_an_epoch(name):
    """As in a loop that saves after each epoch: the order of the next epoch continues the random stream."""
    assert_resumes_at_the_end_of_an_epoch(LOADERS[name])


def few_or_one(is_exhaustive):
    return lambda number: [2, number // 3, number // 3 + 1, number - 2] if is_exhaustive else [number // 3 + 1]


@pytest.mark.parametrize("name", WITH_WORKERS)
def test_a_loader_with_workers_resumes(name, is_exhaustive):
    """From the second epoch; in the long lane also from the first and the last."""
    assert_resumes(WITH_WORKERS[name], after=few_or_one(is_exhaustive))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("by_generator", [False, True])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_the_state_of_a_stateful_loader_of_torchdata_is_used(num_workers, by_generator, is_exhaustive):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make():
        return StatefulDataLoader(
            TensorDataset(torch.arange(NUM_EXAMPLES)),
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_workers=num_workers,
            generator=generator() if by_generator else None,
        )

    every = (lambda number: range(number + 1)) if num_workers == 0 else few_or_one(is_exhaustive)
    assert_resumes(make, after=every)
    state = state_after(make, 2)["loader"]
    assert "own" in state


@pytest.mark.parametrize("by_generator", [False, True])
def test_persistent_workers_keep_the_order_of_examples(by_generator):
    """Their own random numbers are not restored, because they continue from epoch to epoch."""

    def make():
        own = generator() if by_generator else None
        return loader_in_order(shuffle=True, num_workers=1, persistent_workers=True, generator=own)

    assert_resumes(make, after=lambda number: [2, number - 2])
    assert_resumes_at_the_end_of_an_epoch(make)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    "options", [{}, {"use_seedable_sampler": True, "data_seed": 3}, {"dispatch_batches": True}], ids=str
)
def test_a_loader_prepared_by_accelerate_resumes(name, options, is_exhaustive):
    """It reads one batch ahead, so its examples draw random numbers before the model does."""
    make = prepared(LOADERS[name], **options)
    assert_resumes(make, after=lambda number: range(0, number + 1, 1 if is_exhaustive else 5))


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_WORKERS)
def test_a_loader_with_workers_prepared_by_accelerate_resumes(name):
    assert_resumes(prepared(WITH_WORKERS[name]), after=lambda number: [number // 3])


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_loader_prepared_by_accelerate_with_a_state_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Remove that option; the position is saved exactly without it"):
        Resumable(prepared(loader_in_order, use_stateful_dataloader=True)())


def test_a_loaded_state_is_kept_until_the_first_pass():
    state = state_after(LOADERS["shuffled"], 8)
    assert resumed(LOADERS["shuffled"], state).state_dict() == state["loader"]


def test_between_epochs_the_position_is_zero():
    loader = Resumable(loader_in_order())
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"], loader.state_dict()["start"]) == (0, 0, None)
    assert len(list(loader)) == len(loader) == NUM_BATCHES
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"], loader.state_dict()["start"]) == (1, 0, None)


def test_the_rest_of_an_epoch_after_its_last_batch_is_empty():
    """A loop still reaches the end of the epoch, and does there what it does at every end."""
    loader = resumed(LOADERS["shuffled"], state_after(LOADERS["shuffled"], NUM_BATCHES))
    assert (loader.epoch, loader.position) == (0, NUM_BATCHES)
    assert list(loader) == []
    assert (loader.epoch, loader.position) == (1, 0)
    assert len(list(loader)) == NUM_BATCHES


@pytest.mark.parametrize("name", ["shuffled", "one of two ranks", "an example loader"])
def test_an_abandoned_pass_counts_as_an_epoch(name):
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


def test_set_epoch_restarts_another_epoch_and_keeps_the_current_one():
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
    state = state_after(loader_in_order, 5)
    shorter = Resumable(DataLoader(TensorDataset(torch.arange(11)), batch_size=BATCH_SIZE))
    shorter.load_state_dict(state["loader"])
    message = (
        "the loader ended after 3 batches, but the state is after batch 5 of this epoch. Use the same data and batch "
        "size as the saved run."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(shorter))
    loader = Resumable(ExampleLoader(example_loader().data.take(torch.arange(11)), batch_size=4, shuffle=True, seed=3))
    loader.load_state_dict(state_after(example_loader, 5)["loader"])
    with pytest.raises(
        ValueError, match="The state is from a loader with different batches: num_points is 22 in the state"
    ):
        next(iter(loader))


def test_another_number_of_generators_is_refused():
    state = state_after(LOADERS["shuffled by a generator"], 2)["loader"]
    message = "the loader and its samplers have 0 generators; the saved run had 1"
    with pytest.raises(ValueError, match=message):
        Resumable(LOADERS["shuffled"]()).load_state_dict(state)


def test_the_state_of_a_stateful_loader_is_refused_by_another():
    loader = Resumable(WITH_WORKERS["shards"]())
    loader.load_state_dict(state_after(LOADERS["shards"], 2)["loader"])
    with pytest.raises(ValueError, match=r"this DataLoader has none.* with the same num_workers"):
        next(iter(loader))


def test_a_stream_has_no_length():
    with pytest.raises(TypeError, match="has no len"):
        len(Resumable(DataLoader(Stream(), batch_size=BATCH_SIZE)))


def hugging_face_stream(kind):
    from datasets import Dataset as HuggingFaceDataset
    from datasets import interleave_datasets

    stream = HuggingFaceDataset.from_dict({"x": list(range(NUM_EXAMPLES))}).to_iterable_dataset(num_shards=2)
    shuffled = stream.shuffle(seed=1, buffer_size=6)
    return {
        "in order": stream,
        "shuffled": shuffled,
        "mapped": shuffled.map(lambda row: row),
        "interleaved": interleave_datasets([stream, shuffled]),
    }[kind]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["in order", "shuffled", "mapped", "interleaved"])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_shuffled_stream_in_a_stateful_loader_of_torchdata_resumes(kind, num_workers):
    """The state of such a stream lacks what its shuffle buffer held, so it is read again."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make():
        return StatefulDataLoader(
            hugging_face_stream(kind),
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            collate_fn=lambda rows: torch.tensor([row["x"] for row in rows]),
        )

    assert_resumes(make, after=lambda number: [number // 3, number // 3 + 2])
    assert ("own" in state_after(make, 2)["loader"]) == (kind == "in order")


def test_a_loader_that_skips_the_first_batches_of_every_epoch_is_refused():
    from accelerate import skip_first_batches

    for loader in (loader_in_order(), DataLoader(Stream(), batch_size=BATCH_SIZE), prepared(loader_in_order)()):
        Resumable(skip_first_batches(loader, 0))
        with pytest.raises(ValueError, match=r"which skips 2 batches in every epoch\. Wrap the loader itself"):
            Resumable(skip_first_batches(loader, 2))
