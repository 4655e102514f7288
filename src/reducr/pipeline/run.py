"""``reducr run``, ``reducr irreducible`` and ``reducr train``: from a configuration to a run folder."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from reducr._internal.distributed import barrier, broadcast, is_main_rank, process_group, raising_on_all_ranks
from reducr._internal.files import remove_partial_files, replaced_atomically, write_text_atomically
from reducr._internal.run_folder import (
    CHECKPOINT_RULES,
    ResultRow,
    create_run_folder,
    has_results,
    read_results,
    read_start,
    run_lock,
    write_results,
    write_start,
)
from reducr.data import DataModule, RawData, Splits
from reducr.pipeline.checks import check_seeds, check_setup
from reducr.pipeline.config import checked_config, load_config
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, build, methods_of, seeds_of
from reducr.pipeline.target_stage import resume_folder, train_method
from reducr.reports import make_console, write_report


def run_experiment(config: DictConfig) -> Path:
    """All stages for every method and seed, then the report; returns the run folder.

    Interrupted, it leaves what has finished as ``results.csv`` and report, and the checkpoints and selected indices
    of what had not.

    Raises:
        ValueError: for anything wrong with the configuration, before the first step.
        FileExistsError: if the run folder exists.
        KeyboardInterrupt: passed on after everything that there is has been written.
    """
    return _run(checked_config(config), trains_irreducible=True)


def run_train(config: DictConfig) -> Path:
    """Target training alone, for every method and seed, from a finished irreducible stage; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if a method needs irreducible losses without ``irreducible.dir``.
    """
    return _run(checked_config(config), trains_irreducible=False)


def run_irreducible(config: DictConfig) -> Path:
    """Irreducible models and their table for every seed; returns the run folder.

    Raises:
        ValueError: as ``run_experiment``; and if ``gradient_weighted_class`` is not null, ``all`` or a group.
    """
    return _run_irreducible(checked_config(config))


def open_data(folder: Path) -> RawData:
    """The data of a run, read again by its stored configuration from where it was started.

    Raises:
        OSError: if a file is not there, or the folder that the run was started in.
        ValueError: if the data or the configuration is not what it should be.
    """
    _, started_in = read_start(folder)
    config = load_config(folder)
    with contextlib.chdir(started_in):
        return make_datamodule(config).raw


def resume_run(folder: Path) -> Path:
    """Go on with an interrupted run, in its own folder, as if nothing had happened; returns that folder.

    Finished irreducible models and tables are read, finished methods and seeds are not done again, and a training that
    was under way goes on from its last checkpoint. On the CPU the results are bit for bit those of an uninterrupted
    run, but for seconds.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if another process is at work in it, or the data is no longer that of the run.
    """
    command, started_in = read_start(folder)
    config = load_config(folder)
    folder = folder.resolve()
    # the names of files in the configuration begin where the run was started
    with contextlib.chdir(started_in):
        if command == "irreducible":
            _run_irreducible(config, folder=folder)
        else:
            _run(config, trains_irreducible=command == "run", folder=folder)
    return folder


def _run_irreducible(config: DictConfig, *, folder: Path | None = None) -> Path:
    with process_group():
        return _train_irreducible(config, folder)


def _train_irreducible(config: DictConfig, folder: Path | None) -> Path:
    seeds = seeds_of(config)
    datamodule = make_datamodule(config)
    first = SeedData.of(datamodule, seeds[0])
    check_setup(config, [], first, trains_irreducible=True)
    check_seeds(config, [], datamodule, seeds[1:])
    groups = _weighted_groups(config, first.splits.train.num_groups)
    if folder is None:
        folder = _new_folder(config, "irreducible")
    with _claimed(folder), RunDisplay(len(seeds)) as display, _interruptible():
        _remove_leftovers(folder)
        for seed in seeds:
            data = first if seed == first.seed else SeedData.of(datamodule, seed)
            seed_folder = folder / f"seed_{seed}"
            _record_data(data, seed_folder, display)
            stage = IrreducibleStage(config, data, seed_folder / "irreducible", display)
            table = stage.table(groups)
            display.finish(f"seed {seed}  irreducible table of kind {table.kind}, shape {table.values.shape}")
        display.console.print(f"train with irreducible.dir={folder}", highlight=False)
    return folder


def _weighted_groups(config: DictConfig, num_groups: int) -> tuple[int, ...] | None:
    """The groups whose irreducible models ``reducr irreducible`` trains; None for the plain model."""
    weighted = config.gradient_weighted_class
    if config.irreducible.dir is not None:
        raise ValueError(
            "irreducible.dir names a finished stage, which `reducr irreducible` would train: leave it out."
        )
    if weighted is None and config.irreducible.kind in ("adjusted", "trained"):
        return None
    if weighted in (None, "all"):
        return tuple(range(num_groups))
    if not isinstance(weighted, int) or not 0 <= weighted < num_groups:
        raise ValueError(
            f"gradient_weighted_class must be null (the plain model), all, or a group in 0..{num_groups - 1}; got "
            f"{weighted!r}."
        )
    return (weighted,)


def _run(config: DictConfig, *, trains_irreducible: bool, folder: Path | None = None) -> Path:
    if config.gradient_weighted_class is not None:
        raise ValueError(
            f"gradient_weighted_class={config.gradient_weighted_class} is an option of `reducr irreducible`; here "
            "irreducible=trained trains a model for every class. Leave it out."
        )
    with process_group():
        return _train(config, trains_irreducible=trains_irreducible, folder=folder)


def _train(config: DictConfig, *, trains_irreducible: bool, folder: Path | None) -> Path:
    methods, seeds = methods_of(config), seeds_of(config)
    datamodule = make_datamodule(config)
    first = SeedData.of(datamodule, seeds[0])
    check_setup(config, methods, first, trains_irreducible=trains_irreducible)
    check_seeds(config, methods, datamodule, seeds[1:])

    def data_of(seed: int) -> SeedData:
        return first if seed == first.seed else SeedData.of(datamodule, seed)

    if config.irreducible.dir is not None:
        for seed in seeds:
            _check_finished_stage(config, methods, data_of(seed))
    if folder is None:
        folder = _new_folder(config, "run" if trains_irreducible else "train")
    rows = read_results(folder) if has_results(folder) else []
    try:
        with _claimed(folder), RunDisplay(len(methods) * len(seeds)) as display, _interruptible():
            _remove_leftovers(folder)
            for seed in seeds:
                left = _left_to_do(methods, seed, rows, display)
                for finished in _run_seed(config, left, data_of(seed), folder, display) if left else ():
                    rows += finished
                    if is_main_rank():
                        write_results(folder, rows)
    finally:
        if rows and is_main_rank():
            write_report(
                [folder],
                out=folder,
                console=make_console(),
                open_data=lambda _: datamodule.raw,
                with_page=config.record.page,
                with_files=False,
            )
    return folder


def _left_to_do(methods: Sequence[Method], seed: int, rows: Sequence[ResultRow], display: RunDisplay) -> list[Method]:
    """The methods of which an interrupted run has no results for this seed."""
    finished = {row.method for row in rows if row.seed == seed}
    for method in methods:
        if method.name in finished:
            display.finish(f"seed {seed}  {method.name:<22} finished before")
    return [method for method in methods if method.name not in finished]


def _check_finished_stage(config: DictConfig, methods: Sequence[Method], data: SeedData) -> None:
    """Read what ``irreducible.dir`` must hold before the first step, so that a wrong table is refused then."""
    stage = IrreducibleStage(config, data, folder=Path(), display=RunDisplay(0))
    for method in methods:
        if method.selector is None:
            stage.plain_model()
        else:
            stage.losses_for(method.make_selector(data.splits.train.num_groups))


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
    _record_data(data, seed_folder, display)
    stage = IrreducibleStage(config, data, seed_folder / "irreducible", display)
    for method in methods:
        rows = train_method(config, method, data, stage, folder=seed_folder / method.name)
        yield rows
        if is_main_rank():
            shutil.rmtree(resume_folder(seed_folder / method.name), ignore_errors=True)
        last = rows[CHECKPOINT_RULES.index("last")]
        display.finish(
            f"seed {data.seed}  {method.name:<22} worst class {last.worst_class_accuracy:.3f}  "
            f"mean {last.mean_accuracy:.3f}  {last.total_seconds:.1f} s"
        )


def make_datamodule(config: DictConfig) -> DataModule:
    """The data module of a configuration."""
    datamodule = build(config.datamodule)
    if not isinstance(datamodule, DataModule):
        raise TypeError(f"datamodule._target_ must make a reducr.data.DataModule; got {type(datamodule).__name__}.")
    return datamodule


def _claimed(folder: Path) -> AbstractContextManager[None]:
    """By rank 0 for all."""
    return run_lock(folder) if is_main_rank() else nullcontext()


def _remove_leftovers(folder: Path) -> None:
    """Of a process that was killed in this folder; by rank 0, before any goes on."""
    if is_main_rank():
        remove_partial_files(folder)
    barrier()


def _new_folder(config: DictConfig, command: str) -> Path:
    """The new run folder, made by rank 0 for all."""
    with raising_on_all_ranks():
        folder = _made_folder(config, command) if is_main_rank() else None
    made: Path = broadcast(folder)
    return made


def _made_folder(config: DictConfig, command: str) -> Path:
    run_dir = config.model_io.run_dir
    folder = create_run_folder(
        Path(config.model_io.home_dir), config.name, run_dir=None if run_dir is None else Path(run_dir)
    )
    write_text_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    write_text_atomically(folder / "command.txt", f"{sys.argv[0]} {shlex.join(sys.argv[1:])}\n")
    write_start(folder, command=command)
    return folder


def _record_data(data: SeedData, folder: Path, display: RunDisplay) -> None:
    """Print the notes of the data; write which original points are where, and which labels were corrupted."""
    for note in data.splits.notes:
        display.console.print(note, highlight=False)
    arrays = recorded_arrays(data.splits)
    path = folder / "data.npz"
    if path.is_file():
        check_same_data(path, arrays)
        return
    if not is_main_rank():
        return
    with replaced_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def recorded_arrays(splits: Splits) -> dict[str, Any]:
    """What ``data.npz`` says of the parts; see docs/metrics.md."""
    arrays: dict[str, Any] = {"class_names": np.array(splits.class_names), "notes": np.array(splits.notes, dtype=str)}
    if splits.group_names is not None:
        arrays["group_names"] = np.array(splits.group_names)
    for part, points in splits.by_name().items():
        arrays |= {f"{part}_{name}": getattr(points, name).numpy() for name in ("source", "target", "group")}
        if points.is_corrupted is not None:
            arrays[f"{part}_is_corrupted"] = points.is_corrupted.numpy()
    return arrays


def check_same_data(path: Path, arrays: Mapping[str, Any]) -> None:
    """See that the data is that which a run began with.

    Raises:
        ValueError: if it is not; names the first array that differs.
    """
    with np.load(path) as before:
        for name in before.keys() | arrays.keys():
            is_same = name in before and name in arrays and np.array_equal(before[name], arrays[name])
            if not is_same and name != "notes":
                raise ValueError(
                    f"the data is no longer that of the run: {name} is not what {path} says. Bring back the files that "
                    "the run began with, or begin a new one."
                )
