"""The parts of the training program, assembled as by `reducr train`, on synthetic data."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from benchmarks.synthetic import INPUT_SHAPES, NUM_CANDIDATES, NUM_CLASSES
from reducr.data import DataModule, RawData
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, build, methods_of

MODEL_NAMES = {"mlp": "mlp", "cnn": "small_cnn"}


class SyntheticData(DataModule):
    """Random inputs and targets.

    Args:
        shape: shape of one input.
        num_examples: total over all parts.
        options: see ``DataModule``.
    """

    def __init__(self, *, shape: list[int], num_examples: int, **options: Any) -> None:
        super().__init__(**options)
        self.shape = shape
        self.num_examples = num_examples

    def read(self) -> RawData:
        """Random inputs, and targets in turn."""
        generator = torch.Generator().manual_seed(0)
        target: Tensor = torch.arange(self.num_examples) % NUM_CLASSES
        return RawData(
            input=torch.randn(self.num_examples, *self.shape, generator=generator),
            target=target,
            class_names=tuple(map(str, range(NUM_CLASSES))),
        )


@dataclass(frozen=True)
class Program:
    """A configuration with its data and an output folder.

    Args:
        config: the whole configuration.
        data: the data of its seed.
        folder: temporary output folder.
        display: progress display, drawn as on a terminal but not shown.
    """

    config: DictConfig
    data: SeedData
    folder: Path
    display: RunDisplay

    @property
    def method(self) -> Method:
        """The method to train."""
        return methods_of(self.config)[0]

    def stage(self, name: str, *, config: DictConfig | None = None) -> IrreducibleStage:
        """A new irreducible stage in the folder ``name``."""
        return IrreducibleStage(config or self.config, self.data, self.folder / name, self.display)


def composed(model: str, *options: str, num_train: int, num_holdout: int) -> DictConfig:
    """The configuration of ``reducr train experiment=fashion_mnist``, for a model and data of ``synthetic``."""
    with hydra.initialize_config_module("reducr.configs", version_base="1.3"):
        return hydra.compose(
            "main",
            [
                "experiment=fashion_mnist",
                "datamodule=digits",
                "datamodule._target_=benchmarks.program.SyntheticData",
                f"+datamodule.shape={list(INPUT_SHAPES[model])}",
                f"+datamodule.num_examples={num_train + num_holdout + 10 * NUM_CLASSES}",
                f"datamodule.holdout_size={num_holdout}",
                f"datamodule.test_size={10 * NUM_CLASSES}",
                "datamodule.imbalance.train=null",
                f"model={MODEL_NAMES[model]}",
                f"num_candidates={NUM_CANDIDATES}",
                "selection_method=reducr",
                "seed=0",
                *options,
            ],
        )


@contextmanager
def opened(config: DictConfig) -> Iterator[Program]:
    """The program of ``config`` with its data, a temporary folder and a display."""
    data = SeedData.of(build(config.datamodule), config.seed)
    console = Console(file=io.StringIO(), force_terminal=True)
    with TemporaryDirectory() as folder, RunDisplay(1, console=console) as display:
        yield Program(config, data, Path(folder), display)
