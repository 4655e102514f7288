"""The runs of a table: which there are to be, and where they are kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from benchmarks.study.training import train
from reducr._internal.memory import keep_freed_memory
from reducr.pipeline.setup import SeedData, build

KEY = ("method", "options", "seed")


class Row(NamedTuple):
    """What is trained.

    Args:
        label: of a line of the table.
        method: a key of the ``methods`` configuration.
        options: of `reducr run`, beside those of the setting.
        in_parts: train on every point, in steps as small as those of the methods that select, and score nothing.
        block: of the table, whose first row the others of the block are compared with.
    """

    label: str
    method: str
    options: tuple[str, ...] = ()
    in_parts: bool = False
    block: str = ""

    def with_options(self, *options: str) -> Row:
        """The same with more options."""
        return self._replace(options=(*self.options, *options))

    def key(self, seed: int) -> tuple[str, str, int]:
        """Of its run with ``seed``."""
        return f"{self.method}{' in parts' * self.in_parts}", " ".join(self.options), seed


class Job(NamedTuple):
    """A run to make."""

    experiment: str
    options: tuple[str, ...]
    row: Row
    seed: int
    seconds: float


def made(jobs: Sequence[Job], *, num_processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Make runs, so many at a time, each on one thread; in the order in which they are finished."""
    with multiprocessing.get_context("spawn").Pool(num_processes, initializer=_prepare) as pool:
        yield from pool.imap_unordered(_made, jobs)


def _prepare() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def _made(job: Job) -> tuple[Job, dict[str, Any]]:
    config = composed(job)
    of_data = tuple(one for one in (*job.options, *job.row.options) if one.startswith("datamodule."))
    data = _data(job.experiment, of_data, job.seed)
    outcome = train(config, data, seconds=job.seconds, in_parts=job.row.in_parts)
    method, options, seed = job.row.key(job.seed)
    return job, {"method": method, "options": options, "seed": seed, **outcome}


def composed(job: Job) -> DictConfig:
    """The configuration of a run."""
    return _composed(job.experiment, (*job.options, *job.row.options, f"compare=[{job.row.method}]"))


def _composed(experiment: str, options: Iterable[str]) -> DictConfig:
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[f"experiment={experiment}", *options])


@cache
def _data(experiment: str, options: tuple[str, ...], seed: int) -> SeedData:
    """The data of a seed, read once for all runs of a process that have the same."""
    return SeedData.of(build(_composed(experiment, options).datamodule), seed)
