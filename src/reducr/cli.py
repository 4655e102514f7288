"""The command line: ``reducr run | irreducible | train | resume | report | export``."""

from __future__ import annotations

import argparse
import codecs
import csv
import difflib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from reducr.data import RawData
    from reducr.exports import Export

T = TypeVar("T")

_USAGE = """\
usage: reducr COMMAND [OPTION=VALUE ...]

  reducr run experiment=NAME          all stages: reference model, table, every method and seed, report
  reducr irreducible experiment=NAME  reference models and their table only (gradient_weighted_class=null|NUMBER|all)
  reducr train experiment=NAME        target training only (irreducible.dir=RUN, selection_method=NAME, seed=NUMBER)
  reducr resume RUN                   continue an interrupted run of any of these (--help: damaged, moved, of others)
  reducr report RUN... --out DIR      HTML page, tables and plots of finished, running or interrupted runs
  reducr export RUN --fraction 0.1    downsampled data set of a run (docs/export.md; --help for all options)

The reference model is the paper's irreducible model.

your own data, without code:

  reducr run experiment=table datamodule.train_file=FILE datamodule.target_column=NAME 'datamodule.text_columns=[NAME]'
  reducr run experiment=image_folder datamodule.data_dir=DIR
  reducr run experiment=hugging_face datamodule.path=DIR datamodule.input_column=NAME datamodule.target_column=NAME

options:

  reducr run --cfg job                all options of the default experiment
  reducr run experiment=NAME --help   the same, and Hydra's own flags
  --config-dir DIR                    a folder of your own YAML files
  -m OPTION=A,B,C                     one run per value; hydra/launcher=joblib runs them in parallel

experiments:

{experiments}
"""

_ORIGINAL_OPTIONS = {
    "percent_train": "fraction",
    "selection_method.percent_train": "fraction",
    "eta": "methods.reducr.options.step_size",
    "selection_method.eta": "methods.reducr.options.step_size",
    "gradient_weight": "irreducible.gradient_weight",
}
"""Options of the original repository -> our names."""
_EXTRAS = {
    "vision": ("PIL", "tqdm"),
    "table": ("pandas", "pyarrow"),
    "text": ("transformers", "datasets", "tokenizers"),
    "timm": ("timm", "torchvision"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "train": ("lightning", "hydra", "torchmetrics", "sklearn", "scipy", "matplotlib", "rich"),
}
"""Extra -> packages that it installs."""
_USER_FAULTS = (ValueError, TypeError, OSError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``reducr`` command. Exit status 2 is a user's fault, 130 is Ctrl-C, 143 is SIGTERM."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text, and terminals may lack characters
        if isinstance(stream, TextIOWrapper):
            is_unicode = codecs.lookup(stream.encoding).name.startswith("utf")
            stream.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")
    command, *rest = [argument for argument in (sys.argv[1:] if arguments is None else arguments) if argument] or [""]
    commands = {"report": _report, "resume": _resume, "export": _export}
    if command in commands:
        _exiting_cleanly(lambda: commands[command](rest))
    elif command in ("run", "irreducible", "train"):
        _exiting_cleanly(lambda: _hydra_command(command, rest))
    else:
        is_help = command in ("", "-h", "--help")
        experiments = textwrap.fill(", ".join(_experiments()), width=100, initial_indent="  ", subsequent_indent="  ")
        text = _USAGE.format(experiments=experiments)
        if not is_help:
            text = f"reducr: unknown command {command!r}.\n\n{text}"
        (sys.stdout if is_help else sys.stderr).write(text)
        sys.exit(0 if is_help else 2)


def _hydra_command(command: str, rest: Sequence[str]) -> None:
    import hydra
    from hydra.errors import HydraException

    import reducr.configs  # noqa: F401  (registers the configurations without a YAML file)
    from reducr import pipeline
    from reducr._internal.memory import keep_freed_memory
    from reducr._internal.text import without_escapes
    from reducr.pipeline.hydra_places import is_plain, keep_hydra_from_writing

    keep_freed_memory()
    entry = {
        "run": pipeline.run_experiment,
        "irreducible": pipeline.run_irreducible,
        "train": pipeline.run_train,
    }[command]

    started_in = Path.cwd()

    def task(config: DictConfig) -> str:
        os.chdir(started_in)
        folder = _exiting_cleanly(lambda: entry(config))
        _print_folder(folder)
        return str(folder)

    sys.argv = [f"reducr {command}", *(_renamed(argument) for argument in rest)]
    if not is_plain(str(started_in)):
        os.chdir("/")
    keep_hydra_from_writing()
    # Hydra's short form of an error hides the cause, which holds the message for the user.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(version_base="1.3", config_path="configs", config_name="main")(task)()
    except HydraException as error:
        sys.stderr.write(f"reducr: {without_escapes(str(_option_fault(error) or error))}\n{_advice(error)}")
        sys.exit(2)


def _option_fault(error: HydraException) -> ValueError | None:
    """An unknown option in a YAML file, or a value of the wrong type; None for any other error."""
    from omegaconf.errors import OmegaConfBaseException

    from reducr.pipeline.config import option_error

    cause = error.__cause__ or error.__context__
    fault = option_error(cause) if isinstance(cause, OmegaConfBaseException) else None
    file = re.match(r"In '([^']+)'", str(error))
    return fault if fault is None or file is None else ValueError(f"In {file[1]}: {fault}")


def _advice(error: HydraException) -> str:
    """Lines that say what to do about an error of Hydra."""
    import hydra
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    if isinstance(error, OverrideParseException):
        return (
            "Put a value with special characters, such as accented letters, brackets or commas, into double quotes, "
            """and the whole argument into single quotes: 'OPTION="VALUE"', 'OPTION=["VALUE","VALUE"]'\n"""
        )
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown is None:
        return ""
    name = unknown[1]
    lines = ""
    if f"+{name}={{" in str(error):
        lines = (
            f"Hydra merges a mapping into the one that {name} already holds. To replace it, put {name}=null before "
            "it.\n"
        )
    with hydra.initialize_config_module("reducr.configs", version_base="1.3"):
        options = _dotted_names(OmegaConf.to_container(hydra.compose("main"), resolve=False))
    nearest = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if nearest and name not in nearest:
        return f"Did you mean {' or '.join(nearest)}?\n{lines}"
    return lines or "`reducr run experiment=NAME --cfg job` shows all options.\n"


def _dotted_names(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [name for key, value in node.items() for name in _dotted_names(value, f"{prefix}.{key}".lstrip("."))]


def _renamed(argument: str) -> str:
    """``argument`` with an option of the original repository renamed to ours."""
    name, equals, value = argument.partition("=")
    prefix = name[: len(name) - len(name.lstrip("+"))]
    return f"{prefix}{_ORIGINAL_OPTIONS.get(name.lstrip('+'), name.lstrip('+'))}{equals}{value}"


def _report(arguments: Sequence[str]) -> None:
    from reducr.reports import make_console, write_report

    parser = argparse.ArgumentParser(
        prog="reducr report",
        description="Write an HTML page, tables and plots of finished or unfinished runs. Runs on the same data are "
        "compared; the seeds and methods of runs with equal settings are combined.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="output folder; default: the only RUN")
    parser.add_argument("--no-points", action="store_true", help="show no examples, which needs the data")
    _add_stored_run_options(parser, of="the only RUN")
    options = parser.parse_args(arguments)
    if options.out is None and len(options.runs) > 1:
        parser.error("a report of several runs needs --out DIR")
    if options.accept_changes:
        _accept_changes(options.runs)

    def open_data(run: Path) -> RawData:
        from reducr import pipeline
        from reducr._internal.text import without_escapes

        try:
            return pipeline.open_data(run, is_trusted=options.trust, data_dir=options.data_dir)
        except ValueError as error:
            sys.stderr.write(f"reducr: {without_escapes(str(error))}\n")
            raise

    write_report(
        options.runs,
        out=options.out or options.runs[0],
        console=make_console(),
        open_data=None if options.no_points else open_data,
    )


def _add_stored_run_options(parser: argparse.ArgumentParser, *, of: str = "RUN") -> None:
    parser.add_argument("--trust", action="store_true", help="run any code that the configuration in RUN names")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=f"folder of the data, if that of {of} has moved")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="accept files of RUN that are not as the run wrote them; run.json records it",
    )


def _accept_changes(runs: Sequence[Path]) -> None:
    from reducr._internal.run_check import accept_changes
    from reducr._internal.run_folder import run_lock
    from reducr._internal.run_start import RunStart
    from reducr._internal.text import one_line

    for run in runs:
        RunStart.read(run)
        with run_lock(run):
            for name in accept_changes(run):
                changed = one_line(str(run / name))
                sys.stderr.write(f"reducr: {changed} has changed, which is accepted and recorded in run.json.\n")


def _resume(arguments: Sequence[str]) -> None:
    from reducr._internal.memory import keep_freed_memory
    from reducr.pipeline import ResumeOptions, resume_run

    parser = argparse.ArgumentParser(
        prog="reducr resume", description="Continue an interrupted run. Finished parts are not repeated."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    _add_stored_run_options(parser)
    parser.add_argument(
        "--make-again", action="store_true", help="train again what files belong to that are not as the run wrote them"
    )
    options = parser.parse_args(arguments)
    keep_freed_memory()
    resume_options = ResumeOptions(
        is_trusted=options.trust,
        data_dir=options.data_dir,
        makes_again=options.make_again,
        accepts_changes=options.accept_changes,
    )
    _print_folder(resume_run(options.run, resume_options))


def _export(rest: Sequence[str]) -> None:
    from reducr.exports import ORDERS, QUOTAS, ExportOptions, export_run

    parser = argparse.ArgumentParser(prog="reducr export", description="Write the downsampled data set of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished or interrupted run")
    parser.add_argument("--fraction", type=float, required=True, help="share of the training part to keep, in (0, 1]")
    parser.add_argument("--out", type=Path, help="new folder; default: RUN/export")
    parser.add_argument("--method", help="default: reducr, or the only method")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all with the same training part as the first")
    parser.add_argument(
        "--order", choices=ORDERS, default="both", help="rank by times selected, by mean score, or both; default: both"
    )
    parser.add_argument(
        "--quotas", choices=QUOTAS, default="selected", help="shares of the classes; default: as selected in the run"
    )
    parser.add_argument("--quota", action="append", default=[], metavar="CLASS=N", help="keep N examples of CLASS")
    parser.add_argument("--at-least", type=int, default=1, metavar="N", help="at least N per class, or all; default: 1")
    parser.add_argument("--drop-label-errors", action="store_true", help="drop labels that two models find unlikely")
    parser.add_argument("--link", action="store_true", help="link the images of an image folder instead of copying")
    _add_stored_run_options(parser)
    arguments = parser.parse_args(rest)
    if arguments.accept_changes:
        _accept_changes([arguments.run])
    options = ExportOptions(
        fraction=arguments.fraction,
        method=arguments.method,
        seeds=arguments.seeds,
        order=arguments.order,
        quotas=arguments.quotas,
        quota_of_class=dict(_quota(quota) for quota in arguments.quota),
        at_least=arguments.at_least,
        drops_label_errors=arguments.drop_label_errors,
        is_linked=arguments.link,
        data_dir=None if arguments.data_dir is None else arguments.data_dir.absolute(),
        is_trusted=arguments.trust,
    )
    _print_export(export_run(arguments.run, arguments.out or arguments.run / "export", options))


def _quota(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise ValueError(f"`--quota` must be CLASS=N, a class and a number of examples; got {text!r}.")
    return name, int(number)


def _print_export(export: Export) -> None:
    lines = [f"{export.num_chosen} of {export.num_examples} examples, chosen by {export.method}"]
    lines += [f"  {name}: {chosen} of {size}" for name, (size, chosen) in export.counts.items()]
    if export.num_suspected is not None:
        lines.append(f"{export.num_suspected} suspected label errors dropped")
    lines += export.notes
    if export.data_options:
        overrides = (f"datamodule.{name}={_override(value)}" for name, value in export.data_options.items())
        lines.append(f"read it with {' '.join(overrides)}")
    from reducr._internal.text import one_line

    lines.append(f"export folder: {export.folder}")
    sys.stdout.write("".join(f"{one_line(line)}\n" for line in lines))


def _override(value: Any) -> str:
    """``value`` in the syntax of Hydra's command line."""
    if value is None:
        return "null"
    return f"[{','.join(map(_override, value))}]" if isinstance(value, list | tuple) else str(value)


def _print_folder(folder: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(f"run folder: {folder}\n")


def _exiting_cleanly(work: Callable[[], T]) -> T:
    """The result of ``work``. A user's fault, a missing extra or Ctrl-C ends in a short message, not a traceback.

    SIGTERM and SIGHUP end it as Ctrl-C does.
    """
    from reducr._internal.signals import received_signal, stopped_by_signals
    from reducr._internal.text import without_escapes

    try:
        with stopped_by_signals():
            return work()
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nreducr: interrupted. Finished results are in the run folder; `reducr resume RUN` continues the run.\n"
        )
        sys.exit(128 + (received_signal() or signal.SIGINT))
    except _USER_FAULTS as error:
        sys.stderr.write(f"reducr: {without_escapes(str(error))}\n")
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = next((name for name, packages in _EXTRAS.items() if (error.name or "").split(".")[0] in packages), None)
        if extra is None:
            raise
        sys.stderr.write(f"reducr: {error.name} is not installed. Install it with: pip install 'reducr[{extra}]'\n")
        sys.exit(2)


def _experiments() -> list[str]:
    folder = Path(__file__).parent / "configs"
    with (folder / "published" / "experiments.csv").open(newline="", encoding="utf-8") as table:
        published = [row["experiment"] for row in csv.DictReader(table)]
    return sorted([*published, *(path.stem for path in (folder / "experiment").glob("*.yaml"))])


if __name__ == "__main__":
    main()
