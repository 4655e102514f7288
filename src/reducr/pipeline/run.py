"""The commands ``reducr run``, ``irreducible``, ``train`` and ``resume``: from a configuration to a run folder."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from omegaconf import DictConfig

from reducr._internal.distributed import barrier, broadcast, is_main_rank, process_group, raising_on_all_ranks
from reducr._internal.files import FullDiskError, remove_partial_files
from reducr._internal.manifest import has_manifest, start_manifest, write_recorded
from reducr._internal.run_check import record_training
from reducr._internal.run_folder import (
    CHECKPOINT_RULES,
    ResultRow,
    check_folder_name,
    claim,
    create_run_folder,
    has_results,
    read_results,
    run_lock,
    write_results,
)
from reducr._internal.run_start import write_start
from reducr._internal.signals import received_signal
from reducr.data import DataModule
from reducr.pipeline.checks import check_seeds, check_setup
from reducr.pipeline.config import checked_config, yaml_of
from reducr.pipeline.data_record import record_data
from reducr.pipeline.finished_stages import remove_states_of_finished_models
from reducr.pipeline.inputs_record import record_inputs
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, build, methods_of, seeds_of
from reducr.pipeline.target_stage import resume_folder, train_method
from reducr.reports import make_console, print_line, write_report


def run_experiment(config: DictConfig) -> Path:
    """Run all stages for every method and seed, write the report, and return the run folder.

    An interrupted run leaves ``results.csv`` and a report of the finished trainings, and the checkpoints and selected
    indices of the unfinished one.

    Raises:
        ValueError: for a fault in the configuration, before the first step.
        FileExistsError: if the run folder exists and is not empty.
        KeyboardInterrupt: on Ctrl-C, after these files are written.
    """
    return _run(_checked(config), trains_irreducible=True)


def run_train(config: DictConfig) -> Path:
    """Train every method for every seed, with the reference models of ``irreducible.dir``; return the run folder.

    Raises:
        ValueError: as ``run_experiment``, and if a method needs irreducible losses and ``irreducible.dir`` is null.
    """
    return _run(_checked(config), trains_irreducible=False)


def run_irreducible(config: DictConfig) -> Path:
    """Train the reference models and build their table for every seed; return the run folder.

    Raises:
        ValueError: as ``run_experiment``, and if ``gradient_weighted_class`` is not null, ``all`` or a group.
    """
    return _run_irreducible(_checked(config))


def _checked(config: DictConfig) -> DictConfig:
    """The configuration of a new run."""
    checked = checked_config(config)
    if checked.model_io.run_dir is None:
        check_folder_name("name", checked.name)
    return checked


def run_again(config: DictConfig, command: str, folder: Path) -> None:
    """Continue the interrupted run of ``command`` in its own ``folder``, in the directory that paths count from."""
    if command == "irreducible":
        _run_irreducible(config, folder=folder)
    else:
        _run(config, trains_irreducible=command == "run", folder=folder)


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
        folder = _shared_new_folder(config, "irreducible")
    with telling_how_to_resume(folder), _locked(folder), RunDisplay(len(seeds)) as display, _interruptible():
        _remove_leftovers(folder)
        _remove_finished_states(folder, ())
        record_inputs(folder, datamodule.raw.input, config.datamodule, writes=has_manifest(folder))
        for seed in seeds:
            data = first if seed == first.seed else SeedData.of(datamodule, seed)
            seed_folder = folder / f"seed_{seed}"
            record_data(data.splits, seed_folder, display)
            stage = IrreducibleStage(config, data, seed_folder / "irreducible", display)
            table = stage.table(groups)
            display.finish(f"seed {seed}  irreducible table of kind {table.kind}, shape {table.values.shape}")
        print_line(f"train with irreducible.dir={folder}", display.console)
    return folder


def _weighted_groups(config: DictConfig, num_groups: int) -> tuple[int, ...] | None:
    """The groups whose reference models ``reducr irreducible`` trains; None for the plain model."""
    group = config.gradient_weighted_class
    if config.irreducible.dir is not None:
        raise ValueError("`reducr irreducible` trains models, and irreducible.dir names trained ones. Leave it out.")
    if group is None and config.irreducible.kind in ("adjusted", "trained"):
        return None
    if group in (None, "all"):
        return tuple(range(num_groups))
    if not isinstance(group, int) or not 0 <= group < num_groups:
        raise ValueError(
            f"gradient_weighted_class must be null (the plain model), all, or a group in 0..{num_groups - 1}; got "
            f"{group!r}."
        )
    return (group,)


def _run(config: DictConfig, *, trains_irreducible: bool, folder: Path | None = None) -> Path:
    if config.gradient_weighted_class is not None:
        raise ValueError(
            f"gradient_weighted_class={config.gradient_weighted_class} is an option of `reducr irreducible`. Leave it "
            "out; `irreducible=trained` trains a model for every class."
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
        folder = _shared_new_folder(config, "run" if trains_irreducible else "train")
    with telling_how_to_resume(folder), _locked(folder):
        _train_all(config, methods, datamodule, data_of, folder)
    return folder


def _train_all(
    config: DictConfig,
    methods: Sequence[Method],
    datamodule: DataModule,
    data_of: Callable[[int], SeedData],
    folder: Path,
) -> None:
    """Train every method for every seed, and write the report, also if it is interrupted.

    Only the process that has locked the folder reads its results and writes its report.
    """
    seeds = seeds_of(config)
    _remove_leftovers(folder)
    rows = read_results(folder) if has_results(folder) else []
    _remove_finished_states(folder, rows)
    has_room = True
    try:
        with RunDisplay(len(methods) * len(seeds)) as display, _interruptible():
            record_inputs(folder, datamodule.raw.input, config.datamodule, writes=has_manifest(folder))
            for seed in seeds:
                unfinished = _unfinished_methods(methods, seed, rows, display)
                for new_rows in _run_seed(config, unfinished, data_of(seed), folder, display) if unfinished else ():
                    rows += new_rows
                    if is_main_rank():
                        write_results(folder, rows)
    except FullDiskError:
        has_room = False
        raise
    finally:
        if rows and has_room and is_main_rank():
            write_report(
                [folder],
                out=folder,
                console=make_console(),
                open_data=lambda _: datamodule.raw,
                # a scheduler that sends SIGTERM waits some seconds before it kills
                with_page=config.record.page and received_signal() is None,
                with_files=False,
                is_own=True,
            )


def _remove_finished_states(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Remove the states of finished trainings, left by a process that was killed after it had written their results."""
    if is_main_rank():
        finished = {folder / f"seed_{row.seed}" / row.method for row in rows}
        for training in folder.glob("seed_*/*"):
            if training in finished:
                shutil.rmtree(resume_folder(training), ignore_errors=True)
        for stage in folder.glob("seed_*/irreducible"):
            remove_states_of_finished_models(stage)
    barrier()


def _unfinished_methods(
    methods: Sequence[Method], seed: int, rows: Sequence[ResultRow], display: RunDisplay
) -> list[Method]:
    """The methods without results for this seed; all of them, except in an interrupted run."""
    finished = {row.method for row in rows if row.seed == seed}
    for method in methods:
        if method.name in finished:
            display.finish(f"seed {seed}  {method.name:<22} finished before")
    return [method for method in methods if method.name not in finished]


def _check_finished_stage(config: DictConfig, methods: Sequence[Method], data: SeedData) -> None:
    """Read all that is needed from ``irreducible.dir``, so that a wrong table is an error before the first step."""
    stage = IrreducibleStage(config, data, folder=Path(), display=RunDisplay(0))
    for method in methods:
        if method.selector is None:
            stage.plain_model()
        else:
            stage.losses_for(method.make_selector(data.splits.train.num_groups))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C. During a fit Lightning raises SystemExit, after callbacks have saved state."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


def _run_seed(
    config: DictConfig, methods: Sequence[Method], data: SeedData, folder: Path, display: RunDisplay
) -> Iterator[list[ResultRow]]:
    """Train every method for one seed; yield the rows of each when it finishes."""
    seed_folder = folder / f"seed_{data.seed}"
    record_data(data.splits, seed_folder, display)
    stage = IrreducibleStage(config, data, seed_folder / "irreducible", display)
    for method in methods:
        rows = train_method(config, method, data, stage, folder=seed_folder / method.name)
        if is_main_rank():
            record_training(folder, seed_folder / method.name, rows)
        yield rows
        if is_main_rank():
            shutil.rmtree(resume_folder(seed_folder / method.name), ignore_errors=True)
        last = rows[CHECKPOINT_RULES.index("last")]
        display.finish(
            f"seed {data.seed}  {method.name:<22} worst class {last.worst_class_accuracy:.3f}  "
            f"mean {last.mean_accuracy:.3f}  {last.total_seconds:.1f} s"
        )


def make_datamodule(config: DictConfig) -> DataModule:
    """A new data module.

    Raises:
        TypeError: if ``datamodule._target_`` makes anything else.
    """
    datamodule = build(config.datamodule)
    if not isinstance(datamodule, DataModule):
        raise TypeError(f"datamodule._target_ must make a reducr.data.DataModule; got {type(datamodule).__name__}.")
    return datamodule


@contextmanager
def telling_how_to_resume(folder: Path) -> Iterator[None]:
    """Add to the error of a full disk how to go on."""
    try:
        yield
    except FullDiskError as error:
        error.run = folder
        raise


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Lock the run folder, on rank 0 for all ranks."""
    return run_lock(folder) if is_main_rank() else nullcontext()


def _remove_leftovers(folder: Path) -> None:
    """Remove the partial files of a process that was killed in this folder, on rank 0 before any rank continues."""
    if is_main_rank():
        remove_partial_files(folder)
    barrier()


def _shared_new_folder(config: DictConfig, command: str) -> Path:
    """Create the run folder, on rank 0 for all ranks."""
    with raising_on_all_ranks():
        folder = _create_folder(config, command) if is_main_rank() else None
    shared_folder: Path = broadcast(folder)
    return shared_folder


def _create_folder(config: DictConfig, command: str) -> Path:
    run_dir = config.model_io.run_dir
    folder = create_run_folder(
        Path(config.model_io.home_dir), config.name, run_dir=None if run_dir is None else Path(run_dir)
    )
    claim(folder)
    start_manifest(folder)
    write_recorded(folder, folder / "config.yaml", yaml_of(config))
    write_recorded(folder, folder / "command.txt", f"{sys.argv[0]} {shlex.join(sys.argv[1:])}\n")
    write_start(folder, command=command)
    return folder
