"""``reducr run``, ``reducr irreducible`` and ``reducr train``: from a configuration to a run folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from reducr.data import DataModule
from reducr.files import replaced_atomically, write_text_atomically
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, check_setup, methods_of, seeds_of
from reducr.pipeline.target_stage import train_method
from reducr.reports import make_console, write_report
from reducr.runs import ResultRow, create_run_folder, write_results


def run_experiment(config: DictConfig) -> Path:
    """All stages for every method and seed, then the report; returns the run folder.

    Interrupted, it leaves what has finished as ``results.csv`` and report, and the checkpoints and selected indices
    of what had not.

    Raises:
        ValueError: for anything wrong with the configuration, before the first step.
        FileExistsError: if the run folder exists.
        KeyboardInterrupt: passed on after everything that there is has been written.
    """
    methods, seeds = methods_of(config), seeds_of(config)
    data = {seeds[0]: _load(config, seeds[0])}
    check_setup(config, methods, data[seeds[0]])
    folder = _new_folder(config)
    rows: list[ResultRow] = []
    try:
        with RunDisplay(len(methods) * len(seeds)) as display:
            for seed in seeds:
                seed_data = data.pop(seed, None) or _load(config, seed)
                rows += _run_seed(config, methods, seed_data, folder, display, finished=rows)
    except SystemExit as stopped:
        # Lightning turns Ctrl-C during a fit into an exit, after its callbacks have saved the state
        raise KeyboardInterrupt from stopped
    finally:
        if rows:
            write_report([folder], out=folder, console=make_console())
    return folder


def run_train(config: DictConfig) -> Path:
    """Target training of one method for one seed; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if the method needs irreducible losses and ``irreducible.dir`` is not
            given.
    """
    selection_method = config.selection_method or "reducr"
    seed = config.seed if config.seed is not None else 0
    one = OmegaConf.merge(config, {"selection_method": selection_method, "seed": seed})
    if not isinstance(one, DictConfig):
        raise TypeError("the configuration must be a mapping.")
    method = methods_of(one)[0]
    if method.selector is None:
        raise ValueError(f"{method.name!r} has no target training; train it with `reducr irreducible`.")
    needs = method.make_selector(num_groups=1).needs if "group_weights" not in method.options else frozenset()
    needs_irreducible = method.selector == "fixed_weights" or any("irreducible_loss" in need for need in needs)
    if needs_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} needs irreducible losses and `reducr train` trains no irreducible model: run `reducr "
            "irreducible` with the same experiment and seed and give irreducible.dir=RUN/seed_N/irreducible, or use "
            "`reducr run`, which does both."
        )
    return run_experiment(one)


def run_irreducible(config: DictConfig) -> Path:
    """Irreducible models and their table for every seed; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if ``gradient_weighted_class`` is not null, ``all`` or a group.
    """
    seeds = [config.seed] if config.seed is not None else [0]
    data = _load(config, seeds[0])
    weighted, num_groups = config.gradient_weighted_class, data.splits.train.num_groups
    if weighted not in (None, "all") and not (isinstance(weighted, int) and 0 <= weighted < num_groups):
        raise ValueError(
            f"gradient_weighted_class must be null (the plain model), all, or a group in 0..{num_groups - 1}; got "
            f"{weighted!r}."
        )
    if config.irreducible.dir is not None:
        raise ValueError(
            "irreducible.dir names a finished stage, which `reducr irreducible` would train: leave it out."
        )
    check_setup(config, [], data)
    folder = _new_folder(config)
    with RunDisplay(1) as display:
        stage = IrreducibleStage(config, data, folder / f"seed_{data.seed}" / "irreducible")
        display.begin("irreducible", stage.num_training_steps())
        table = stage.build_table(weighted, display.advance)
        (seconds,) = stage.seconds_by_part.values()
        display.finish(f"irreducible table of kind {table.kind}, shape {table.values.shape}, in {seconds:.1f} s")
    return folder


def _run_seed(
    config: DictConfig,
    methods: Sequence[Method],
    data: SeedData,
    folder: Path,
    display: RunDisplay,
    *,
    finished: Sequence[ResultRow],
) -> list[ResultRow]:
    """Every method for one seed; ``results.csv`` is written after each."""
    seed_folder = folder / f"seed_{data.seed}"
    _write_data_record(data, seed_folder)
    stage = IrreducibleStage(config, data, seed_folder / "irreducible")
    rows: list[ResultRow] = []
    for method in methods:
        display.begin(f"seed {data.seed}: {method.name}", config.num_steps)
        rows += train_method(config, method, data, stage, folder=seed_folder / method.name, advance=display.advance)
        write_results(folder, [*finished, *rows])
        last = next(row for row in rows if row.method == method.name)
        display.finish(
            f"seed {data.seed}  {method.name:<22} worst class {last.worst_class_accuracy:.3f}  "
            f"mean {last.mean_accuracy:.3f}  {last.total_seconds:.1f} s"
        )
    return rows


def _load(config: DictConfig, seed: int) -> SeedData:
    datamodule = instantiate(config.datamodule)
    if not isinstance(datamodule, DataModule):
        raise TypeError(f"datamodule._target_ must make a reducr.data.DataModule; got {type(datamodule).__name__}.")
    return SeedData.of(datamodule, seed)


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
        }
        np.savez_compressed(file, **(arrays | known))
