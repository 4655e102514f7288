"""The command ``reducr resume``: continue a run, once its folder has been compared with what the run wrote."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from reducr._internal.distributed import is_main_rank, process_group, raising_on_all_ranks
from reducr._internal.run_check import (
    UNVERIFIED,
    accept_changes,
    check_unchanged,
    is_verified,
    make_again,
)
from reducr._internal.run_folder import run_lock
from reducr._internal.run_start import RunStart, add_to_start, environment
from reducr._internal.text import one_line
from reducr.data import RawData
from reducr.pipeline.inputs_record import check_same_inputs
from reducr.pipeline.run import make_datamodule, run_again
from reducr.pipeline.stored_config import load_config, with_data_in


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """How to go on with a run.

    Args:
        is_trusted: build whatever the configuration in the folder names; see ``reducr.pipeline.trust``.
        data_dir: the folder of the data, if it has moved; recorded in ``run.json``.
        makes_again: make again what changed files belong to.
        accepts_changes: go on with changed files as they are; recorded in ``run.json``.
    """

    is_trusted: bool = False
    data_dir: Path | None = None
    makes_again: bool = False
    accepts_changes: bool = False


def resume_run(folder: Path, options: ResumeOptions | None = None) -> Path:
    """Continue an interrupted run in its own folder; return that folder.

    Finished models, tables, methods and seeds are kept. An unfinished training continues from its last checkpoint. On
    the CPU the results equal those of an uninterrupted run bit for bit, except for seconds.

    Args:
        folder: the run folder.
        options: how to go on; None for the defaults.

    Raises:
        FileNotFoundError: if the folder is not a run folder.
        ValueError: if another process is using it, a file of it or the data has changed since, or its configuration
            names code beyond the list of ``reducr``.
    """
    options = options or ResumeOptions()
    with process_group():
        with raising_on_all_ranks():
            config = load_config_of_run(
                folder, command=f"reducr resume {folder}", is_trusted=options.is_trusted, data_dir=options.data_dir
            )
        with raising_on_all_ranks():
            if is_main_rank():
                if not options.is_trusted:
                    _check_links(folder)
                with run_lock(folder):
                    _prepare(folder, options)
        start = RunStart.read(folder)
        folder = folder.resolve()
        with contextlib.chdir(start.directory), _naming_other_models(folder):
            run_again(config, start.command, folder)
    return folder


@contextlib.contextmanager
def _naming_other_models(folder: Path) -> Iterator[None]:
    """Raise ValueError for a checkpoint that does not fit the model, after a change that was accepted."""
    try:
        yield
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(
            f"A checkpoint in {folder} is not one of the model in its config.yaml. Restore copies of both, or start a "
            "new run."
        ) from error


def open_data(folder: Path, *, is_trusted: bool = False, data_dir: Path | None = None) -> RawData:
    """Read the data of a run again, by its stored configuration.

    Args:
        folder: the run folder.
        is_trusted: see ``load_config``.
        data_dir: the folder of the data, if it has moved.

    Raises:
        OSError: if a file is missing.
        ValueError: if the data or the configuration is invalid, the data has changed, or the configuration names code
            beyond the list of ``reducr``.
    """
    start = RunStart.read(folder)
    config = load_config_of_run(folder, command="reducr report ...", is_trusted=is_trusted, data_dir=data_dir)
    folder = folder.resolve()
    with contextlib.chdir(start.directory):
        datamodule = make_datamodule(config)
        check_same_inputs(folder, datamodule.raw.input)
        return datamodule.raw


def load_config_of_run(folder: Path, *, command: str, is_trusted: bool, data_dir: Path | None) -> DictConfig:
    """The configuration of a run folder with the current folder of its data; see ``load_config``."""
    start = RunStart.read(folder)
    config = load_config(folder, command=command, is_trusted=is_trusted)
    data_dir = start.data_dir if data_dir is None else data_dir.absolute()
    if data_dir is not None:
        with_data_in(config, data_dir)
    return config


def _prepare(folder: Path, options: ResumeOptions) -> None:
    """Compare the folder with its manifest, and record in ``run.json`` what is new."""
    if not is_verified(folder):
        _tell(f"{folder} is {UNVERIFIED}.")
    if options.makes_again:
        for removed in make_again(folder):
            _tell(f"{removed} is made again.")
    if options.accepts_changes:
        for accepted in accept_changes(folder):
            _tell(f"{accepted} has changed, which is accepted and recorded in run.json.")
    check_unchanged(folder, command="resume")
    start = RunStart.read(folder)
    if not start.started_in.is_dir():
        _tell(
            f"The run was started in {start.started_in}, which does not exist here. Relative paths in its "
            f"configuration count from {Path.cwd()}; give the folder of the data with `--data-dir DIR`."
        )
    if options.data_dir is not None and start.data_dir != options.data_dir.absolute():
        add_to_start(folder, "data_dir", data_dir=str(options.data_dir.absolute()))
    _tell_differences(folder, start.differences())


def _tell_differences(folder: Path, differences: Sequence[str]) -> None:
    if differences:
        _tell("The run goes on in another environment, and what is in brackets may differ:")
        for difference in differences:
            _tell(f"  {difference}")
        add_to_start(folder, "resumed", environment=environment())


def _check_links(folder: Path) -> None:
    """Raise ValueError for a link to a folder outside: a resumed run writes and removes files."""
    root = folder.resolve()
    for parent, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(
                    f"{path} is a link to {path.resolve()}, outside the run folder, and a resumed run writes and "
                    "removes files. Replace it by what it links to. If you made the link, run "
                    f"`reducr resume {folder} --trust`."
                )


def _tell(text: str) -> None:
    sys.stderr.write(f"reducr: {one_line(text)}\n")
