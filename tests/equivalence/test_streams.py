"""Selection from streams without index or length: the same as from their batches, also after a resume."""

import io
import itertools
import tarfile

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import reducr
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits
from reducr.streaming import ShardedStream, read_tar

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

NUM_POINTS, NUM_FEATURES, NUM_CLASSES, NUM_SHARDS = 240, 6, 3, 4
GENERATOR = torch.Generator().manual_seed(0)
INPUT = torch.randn(NUM_POINTS, NUM_FEATURES, generator=GENERATOR)
TARGET = torch.randint(0, NUM_CLASSES, (NUM_POINTS,), generator=GENERATOR)
SHARDS = [list(part) for part in np.array_split(np.arange(NUM_POINTS), NUM_SHARDS)]


def points_of(shard):
    return [(INPUT[i], TARGET[i]) for i in shard]


def rows_of(shards):
    for shard in shards:
        for i in shard:
            yield {"input": INPUT[i].tolist(), "label": int(TARGET[i])}


class Generator(IterableDataset):
    """Anyone's generator, which knows of nothing here."""

    def __iter__(self):
        for shard in SHARDS:
            yield from points_of(shard)


def decoded(sample):
    return torch.from_numpy(np.frombuffer(sample["npy"], dtype=np.float32).copy()), int(sample["cls"])


@pytest.fixture(scope="module")
def make_stream(tmp_path_factory):
    """Streams of the same points, made afresh by their name."""
    folder = tmp_path_factory.mktemp("shards")
    for number, shard in enumerate(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for i in shard:
                for extension, content in (("npy", INPUT[i].numpy().tobytes()), ("cls", b"%d" % TARGET[i])):
                    member = tarfile.TarInfo(f"{i:04d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))

    rows = datasets.Dataset.from_dict({"input": INPUT.tolist(), "label": TARGET.tolist()})
    streams = {
        "sharded": lambda: ShardedStream(SHARDS, points_of, shuffle_shards=True),
        "tar": lambda: ShardedStream(sorted(folder.glob("*.tar")), read_tar, map=decoded, shuffle_shards=True),
        "hugging_face": lambda: rows.to_iterable_dataset(num_shards=NUM_SHARDS).with_format("torch"),
        "hugging_face_shuffled": lambda: (
            rows.to_iterable_dataset(num_shards=NUM_SHARDS).shuffle(seed=1, buffer_size=30).with_format("torch")
        ),
        "hugging_face_generator": lambda: datasets.IterableDataset.from_generator(
            rows_of, gen_kwargs={"shards": SHARDS}
        ).with_format("torch"),
        "generator": Generator,
    }
    return lambda name: streams[name]()


STREAMS = [
    (name, num_workers)
    for name in (
        "sharded", "tar", "hugging_face", "hugging_face_shuffled", "hugging_face_generator", "generator"
    )
    for num_workers in (0, 2)
    if name != "generator" or num_workers == 0  # a generator that does not divide its points gives them to each worker
]  # fmt: skip


def loader_of(stream, num_workers):
    return DataLoader(stream, batch_size=40, num_workers=num_workers)


class Run:
    """A model in training on the selected points of a loader."""

    def __init__(self, candidates):
        torch.random.manual_seed(1)
        self.model, reference = nn.Linear(NUM_FEATURES, NUM_CLASSES), nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.loader = reducr.SelectiveLoader(
            candidates,
            self.model,
            reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=0.05, payoff_decay=0.9),
            AdjustedIrreducibleLoss(LiveLogits(reference)),
            fraction=0.1,
            holdout=[(INPUT[:60], TARGET[:60])],
            refresh_steps=2,
        )
        self.selected = []

    def train(self, num_steps):
        """On, pass after pass, until ``num_steps`` have been taken in all."""
        while len(self.selected) < num_steps:
            for batch in self.loader:
                inputs, target = (batch["input"], batch["label"]) if isinstance(batch, dict) else batch
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(inputs), target).backward()
                self.optimizer.step()
                self.selected.append(inputs)
                if len(self.selected) == num_steps:
                    return

    def state(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}
        return {name: part.state_dict() for name, part in parts.items()} | {"selected": self.selected}

    def load(self, state):
        for name in ("model", "optimizer", "loader"):
            getattr(self, name).load_state_dict(state[name])
        self.selected = list(state["selected"])


def assert_same(run, other):
    assert len(run.selected) == len(other.selected)
    for mine, theirs in zip(run.selected, other.selected, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(run.model.weight, other.model.weight)
    assert torch.equal(run.loader.downsampler.selector.group_weights, other.loader.downsampler.selector.group_weights)


@pytest.mark.parametrize(("name", "num_workers"), STREAMS)
def test_selection_from_a_stream_is_that_from_its_batches(name, num_workers, make_stream):
    batches = list(loader_of(make_stream(name), num_workers))
    streamed, listed = Run(loader_of(make_stream(name), num_workers)), Run(batches)
    streamed.train(len(batches))
    listed.train(len(batches))
    assert len(batches) == 6
    assert_same(streamed, listed)
    seen = torch.cat([batch["input"] if isinstance(batch, dict) else batch[0] for batch in batches])
    assert torch.equal(seen.sort(dim=0).values, INPUT.sort(dim=0).values)  # every point once


@pytest.mark.parametrize(("name", "num_workers"), STREAMS)
def test_a_stream_goes_on_where_the_run_was_stopped(name, num_workers, make_stream, tmp_path, is_exhaustive):
    whole = Run(loader_of(make_stream(name), num_workers))
    whole.train(14)
    for stop in (3, 6, 8) if is_exhaustive else (8,):
        first, second = (Run(loader_of(make_stream(name), num_workers)) for _ in range(2))
        first.train(stop)
        torch.save(first.state(), tmp_path / "state.pt")
        second.load(torch.load(tmp_path / "state.pt", weights_only=False))
        second.train(14)
        assert_same(second, whole)


@pytest.mark.parametrize("name", ["hugging_face", "hugging_face_generator"])
def test_hugging_face_streams_are_divided_over_ranks_and_workers(name, make_stream):
    stream = make_stream(name)
    parts = [
        torch.cat([batch["input"] for batch in loader_of(split_dataset_by_node(stream, rank, 2), 2)])
        for rank in range(2)
    ]
    assert [len(part) for part in parts] == [NUM_POINTS // 2] * 2
    assert torch.equal(torch.cat(parts).sort(dim=0).values, INPUT.sort(dim=0).values)


@pytest.mark.parametrize("name", ["hugging_face", "hugging_face_generator"])
def test_a_hugging_face_stream_keeps_its_own_place_in_one_process(name, make_stream):
    batches = [batch["input"] for batch in loader_of(make_stream(name), 0)]
    stream, again = make_stream(name), make_stream(name)
    given = [batch["input"] for batch in itertools.islice(loader_of(stream, 0), 2)]
    again.load_state_dict(stream.state_dict())
    rest = [batch["input"] for batch in loader_of(again, 0)]
    assert len(rest) == 4
    assert torch.equal(torch.cat(given + rest), torch.cat(batches))
