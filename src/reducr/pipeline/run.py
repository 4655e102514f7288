"""``reducr run``, ``reducr irreducible`` and ``reducr train``: from a configuration to a run folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from reducr.data import DataModule
from reducr.files import replaced_atomically, write_text_atomically
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, build, check_setup, methods_of, seeds_of
from reducr.pipeline.target_stage import train_method
from reducr.reports import make_console, write_report
from reducr.runs import CHECKPOINT_RULES, ResultRow, create_run_folder, write_results


def run_experiment(config: DictConfig) -> Path:
    """All stages for every method and seed, then the report; returns the run folder.

    Interrupted, it leaves what has finished as ``results.csv`` and report, and the checkpoints and selected indices
    of what had not.

    Raises:
        ValueError: for anything wrong with the configuration, before the first step.
        FileExistsError: if the run folder exists.
        KeyboardInterrupt: passed on after everything that there is has been written.
    """
    return _run(config, trains_irreducible=True)


def run_train(config: DictConfig) -> Path:
    """Target training alone, for every method and seed, from a finished irreducible stage; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if a method needs irreducible losses without ``irreducible.dir``.
    """
    return _run(config, trains_irreducible=False)


def run_irreducible(config: DictConfig) -> Path:
    """Irreducible models and their table for every seed; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if ``gradient_weighted_class`` is not null, ``all`` or a group.
    """
    seeds = seeds_of(config)
    datamodule = _datamodule(config)
    first = SeedData.of(datamodule, seeds[0])
    check_setup(config, [], first, trains_irreducible=True)
    groups = _weighted_groups(config, first.splits.train.num_groups)
    folder = _new_folder(config)
    with RunDisplay(len(seeds)) as display, _interruptible():
        for seed in seeds:
            data = first if seed == first.seed else SeedData.of(datamodule, seed)
            stage = IrreducibleStage(config, data, folder / f"seed_{seed}" / "irreducible", display)
            table = stage.build_plain_table() if groups is None else stage.build_group_table(groups)
            display.finish(f"seed {seed}  irreducible table of kind {table.kind}, shape {table.values.shape}")
        display.console.print(f"train with irreducible.dir={folder}", highlight=False)
    return folder


def _weighted_groups(config: DictConfig, num_groups: int) -> Sequence[int] | None:
    """The groups whose irreducible models ``reducr irreducible`` trains; None for the plain model."""
    weighted = config.gradient_weighted_class
    if config.irreducible.dir is not None:
        raise ValueError(
            "irreducible.dir names a finished stage, which `reducr irreducible` would train: leave it out."
        )
    if weighted is None:
        return None
    if weighted == "all":
        return range(num_groups)
    if not isinstance(weighted, int) or not 0 <= weighted < num_groups:
        raise ValueError(
            f"gradient_weighted_class must be null (the plain model), all, or a group in 0..{num_groups - 1}; got "
            f"{weighted!r}."
        )
    return [weighted]


def _run(config: DictConfig, *, trains_irreducible: bool) -> Path:
    if config.gradient_weighted_class is not None:
        raise ValueError(
            f"gradient_weighted_class={config.gradient_weighted_class} is an option of `reducr irreducible`; here "
            "irreducible=trained trains a model for every class. Leave it out."
        )
    methods, seeds = methods_of(config), seeds_of(config)
    datamodule = _datamodule(config)
    first = SeedData.of(datamodule, seeds[0])
    check_setup(config, methods, first, trains_irreducible=trains_irreducible)
    if config.irreducible.dir is not None:
        _check_finished_stage(config, methods, first)
    folder = _new_folder(config)
    rows: list[ResultRow] = []
    try:
        with RunDisplay(len(methods) * len(seeds)) as display, _interruptible():
            for seed in seeds:
                data = first if seed == first.seed else SeedData.of(datamodule, seed)
                for finished in _run_seed(config, methods, data, folder, display):
                    rows += finished
                    write_results(folder, rows)
    finally:
        if rows:
            write_report([folder], out=folder, console=make_console())
    return folder


def _check_finished_stage(config: DictConfig, methods: Sequence[Method], data: SeedData) -> None:
    """Read what ``irreducible.dir`` must hold before the first step, so that a wrong table is refused then."""
    stage = IrreducibleStage(config, data, Path(config.irreducible.dir), RunDisplay(0))
    for method in methods:
        if method.selector is None:
            stage.model(None)
        else:
            stage.lookup_for(method.make_selector(data.splits.train.num_groups))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning turns Ctrl-C during a fit into an exit, after its callbacks have saved the state; turn it back."""
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped


def _run_seed(
    config: DictConfig, methods: Sequence[Method], data: SeedData, folder: Path, display: RunDisplay
) -> Iterator[list[ResultRow]]:
    """Every method for one seed; the rows of each as it finishes."""
    seed_folder = folder / f"seed_{data.seed}"
    _write_data_record(data, seed_folder)
    stage = IrreducibleStage(config, data, seed_folder / "irreducible", display)
    for method in methods:
        rows = train_method(config, method, data, stage, folder=seed_folder / method.name)
        yield rows
        last = rows[CHECKPOINT_RULES.index("last")]
        display.finish(
            f"seed {data.seed}  {method.name:<22} worst class {last.worst_class_accuracy:.3f}  "
            f"mean {last.mean_accuracy:.3f}  {last.total_seconds:.1f} s"
        )


def _datamodule(config: DictConfig) -> DataModule:
    datamodule = build(config.datamodule)
    if not isinstance(datamodule, DataModule):
        raise TypeError(f"datamodule._target_ must make a reducr.data.DataModule; got {type(datamodule).__name__}.")
    return datamodule


def _new_folder(config: DictConfig) -> Path:
    run_dir = config.model_io.run_dir
    folder = create_run_folder(
        Path(config.model_io.home_dir), config.name, run_dir=None if run_dir is None else Path(run_dir)
    )
    write_text_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    write_text_atomically(folder / "command.txt", f"{sys.argv[0]} {shlex.join(sys.argv[1:])}\n")
    return folder


def _write_data_record(data: SeedData, folder: Path) -> None:
    """Which original points are where, and which labels were corrupted."""
    splits = data.splits
    with replaced_atomically(folder / "data.npz") as temporary, temporary.open("wb") as file:
        known = {} if splits.train.is_corrupted is None else {"is_corrupted": splits.train.is_corrupted.numpy()}
        arrays: dict[str, Any] = {
            "train_source": splits.train_source.numpy(),
            "holdout_source": splits.holdout_source.numpy(),
            "train_target": splits.train.target.numpy(),
            "train_group": splits.train.group.numpy(),
            "class_names": np.array(splits.class_names),
        }
        if splits.test_source is not None:
            known["test_source"] = splits.test_source.numpy()
        np.savez_compressed(file, **(arrays | known))
