"""The rows of a table, and processes that make their runs."""

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
    """A row of a table.

    Args:
        label: its first cell.
        method: a key of the ``methods`` configuration.
        options: options of `reducr run`, beside those of the table.
        in_parts: whether to train on every example without scoring, in steps as small as those of selection methods.
        block: block of the table; the first row of a block is compared with the others.
    """

    label: str
    method: str
    options: tuple[str, ...] = ()
    in_parts: bool = False
    block: str = ""

    def with_options(self, *options: str) -> Row:
        """The same row with more options."""
        return self._replace(options=(*self.options, *options))

    def key(self, seed: int) -> tuple[str, str, int]:
        """The key of its run with ``seed``."""
        return f"{self.method}{' in parts' * self.in_parts}", " ".join(self.options), seed


class Job(NamedTuple):
    """A run to be made."""

    experiment: str
    options: tuple[str, ...]
    row: Row
    seed: int
    seconds: float


def run_jobs(jobs: Sequence[Job], *, num_processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Make runs in ``num_processes`` processes of one thread each; yields them as they finish."""
    with multiprocessing.get_context("spawn").Pool(num_processes, initializer=_prepare) as pool:
        yield from pool.imap_unordered(_run, jobs)


def _prepare() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def _run(job: Job) -> tuple[Job, dict[str, Any]]:
    config = composed_config(job)
    data_options = tuple(o for o in (*job.options, *job.row.options) if o.startswith("datamodule."))
    data = _data(job.experiment, data_options, job.seed)
    outcome = train(config, data, seconds=job.seconds, in_parts=job.row.in_parts)
    method, options, seed = job.row.key(job.seed)
    return job, {"method": method, "options": options, "seed": seed, **outcome}


def composed_config(job: Job) -> DictConfig:
    """The configuration of a run."""
    return _composed(job.experiment, (*job.options, *job.row.options, f"compare=[{job.row.method}]"))


def _composed(experiment: str, options: Iterable[str]) -> DictConfig:
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[f"experiment={experiment}", *options])


@cache
def _data(experiment: str, options: tuple[str, ...], seed: int) -> SeedData:
    """The data of a seed, shared by the runs of a process."""
    return SeedData.of(build(_composed(experiment, options).datamodule), seed)
