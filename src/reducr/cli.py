"""The command line: ``reducr run | irreducible | train | resume | report | export``."""

from __future__ import annotations

import argparse
import csv
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from reducr.data import RawData
    from reducr.exports import Export

_USAGE = """\
usage: reducr COMMAND [OPTION=VALUE ...]

  reducr run experiment=NAME          all stages: irreducible model, table, every method and seed, report
  reducr irreducible experiment=NAME  irreducible models and their table alone (gradient_weighted_class=null|NUMBER|all)
  reducr train experiment=NAME        target training alone (irreducible.dir=RUN, selection_method=NAME, seed=NUMBER)
  reducr resume RUN                   go on with an interrupted run, of any of these, as if nothing had happened
  reducr report RUN... --out DIR      one HTML page, tables and plots from runs, finished or still going on
  reducr export RUN --fraction 0.1    the downsampled data set of a run (docs/export.md; --help for all options)

your own data, without writing code:

  reducr run experiment=table datamodule.train_file=FILE datamodule.target_column=NAME 'datamodule.text_columns=[NAME]'
  reducr run experiment=image_folder datamodule.data_dir=DIR
  reducr run experiment=hugging_face datamodule.path=DIR datamodule.input_column=NAME datamodule.target_column=NAME

options:

  reducr run --cfg job                all options of the default experiment
  reducr run experiment=NAME --help   the same with Hydra's own flags
  --config-dir DIR                    your own YAML files beside the package's
  -m OPTION=A,B,C                     a run for each value; hydra/launcher=joblib runs them side by side

experiments:

{experiments}
"""

# option names of the original repository, and where they are here
_ORIGINAL_OPTIONS = {
    "percent_train": "fraction",
    "selection_method.percent_train": "fraction",
    "eta": "methods.reducr.options.step_size",
    "selection_method.eta": "methods.reducr.options.step_size",
    "gradient_weight": "irreducible.gradient_weight",
}
# what each extra brings, for the message where it is missing
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
_USER_FAULTS = (ValueError, TypeError, OSError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``reducr`` command; exits with 2 for a user's fault, 130 after Ctrl-C."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = [argument for argument in rest if argument]
    if command == "report":
        _stopping_cleanly(lambda: _report(rest))
    elif command == "resume":
        _stopping_cleanly(lambda: _resume(rest))
    elif command == "export":
        _stopping_cleanly(lambda: _export(rest))
    elif command in ("run", "irreducible", "train"):
        _stopping_cleanly(lambda: _hydra_command(command, rest))
    else:
        is_help = command in ("", "-h", "--help")
        experiments = textwrap.fill(", ".join(_experiments()), width=100, initial_indent="  ", subsequent_indent="  ")
        text = _USAGE.format(experiments=experiments)
        if not is_help:
            text = f"reducr: there is no command {command!r}.\n\n{text}"
        (sys.stdout if is_help else sys.stderr).write(text)
        sys.exit(0 if is_help else 2)


def _hydra_command(command: str, rest: Sequence[str]) -> None:
    import hydra
    from hydra.errors import HydraException

    import reducr.configs  # noqa: F401  (registers the configurations without a YAML file)
    from reducr import pipeline
    from reducr._internal.memory import keep_freed_memory

    keep_freed_memory()
    entry = {
        "run": pipeline.run_experiment,
        "irreducible": pipeline.run_irreducible,
        "train": pipeline.run_train,
    }[command]

    def task(config: DictConfig) -> str:
        folder: Path | None = None

        def work() -> None:
            nonlocal folder
            folder = entry(config)

        _stopping_cleanly(work)
        _say_folder(folder)
        return str(folder)

    sys.argv = [f"reducr {command}", *(_renamed(argument) for argument in rest)]
    # Hydra's short form of an error hides its cause; ours is shorter and says what was meant
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(version_base="1.3", config_path="configs", config_name="main")(task)()
    except HydraException as error:
        sys.stderr.write(f"reducr: {_option_fault(error) or error}\n{_advice(error)}")
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
    """What to do about a fault that Hydra found, in lines of its own."""
    import hydra
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    if isinstance(error, OverrideParseException):
        return (
            "Put a value with letters beyond a to z, brackets, commas or the like into double quotes, and the whole "
            """into single ones: 'OPTION="VALUE"', 'OPTION=["VALUE","VALUE"]'\n"""
        )
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown is None:
        return ""
    name = unknown[1]
    lines = ""
    if f"+{name}={{" in str(error):
        lines = (
            f"Where {name} is a mapping already, Hydra puts the two together, which must then have the same entries: "
            f"give {name}=null before it.\n"
        )
    with hydra.initialize_config_module("reducr.configs", version_base="1.3"):
        options = _dotted_names(OmegaConf.to_container(hydra.compose("main"), resolve=False))
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near and name not in near:
        return f"Did you mean {' or '.join(near)}?\n{lines}"
    return lines or "`reducr run experiment=NAME --cfg job` lists every option.\n"


def _dotted_names(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [name for key, value in node.items() for name in _dotted_names(value, f"{prefix}.{key}".lstrip("."))]


def _renamed(argument: str) -> str:
    """An option of the original repository under the name it has here."""
    name, equals, value = argument.partition("=")
    prefix = name[: len(name) - len(name.lstrip("+"))]
    return f"{prefix}{_ORIGINAL_OPTIONS.get(name.lstrip('+'), name.lstrip('+'))}{equals}{value}"


def _report(rest: Sequence[str]) -> None:
    from reducr.reports import make_console, write_report

    parser = argparse.ArgumentParser(
        prog="reducr report",
        description="One HTML page, tables and plots from runs, finished or not. Runs on the same data are compared; "
        "those of the same settings are put together.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="where to write; by default the only RUN")
    parser.add_argument("--no-points", action="store_true", help="do not read the data again to show points")
    options = parser.parse_args(rest)
    if options.out is None and len(options.runs) > 1:
        parser.error("give --out DIR for a report of several runs")
    write_report(
        options.runs,
        out=options.out or options.runs[0],
        console=make_console(),
        open_data=None if options.no_points else _open_data,
    )


def _open_data(run: Path) -> RawData:
    from reducr.pipeline import open_data

    return open_data(run)


def _resume(rest: Sequence[str]) -> None:
    from reducr._internal.memory import keep_freed_memory
    from reducr.pipeline import resume_run

    parser = argparse.ArgumentParser(
        prog="reducr resume", description="Go on with an interrupted run. What has finished is not done again."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    run = parser.parse_args(rest).run
    keep_freed_memory()
    _say_folder(resume_run(run))


def _export(rest: Sequence[str]) -> None:
    from reducr.exports import ORDERS, QUOTAS, ExportOptions, export_run

    parser = argparse.ArgumentParser(prog="reducr export", description="The downsampled data set of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished or interrupted run")
    parser.add_argument("--fraction", type=float, required=True, help="share of the training part to keep, in (0, 1]")
    parser.add_argument("--out", type=Path, help="a new folder; default: RUN/export")
    parser.add_argument("--method", help="default: reducr, or the only one")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all that have the training part of the first")
    parser.add_argument(
        "--order", choices=ORDERS, default="both", help="what is best: times selected, mean score; default: both"
    )
    parser.add_argument(
        "--quotas", choices=QUOTAS, default="selected", help="shares of the classes; default: as they were selected"
    )
    parser.add_argument("--quota", action="append", default=[], metavar="CLASS=N", help="so many of this class")
    parser.add_argument("--at-least", type=int, default=1, metavar="N", help="of each class, or all it has; default: 1")
    parser.add_argument("--drop-label-errors", action="store_true", help="leave out what two models find unlikely")
    parser.add_argument("--link", action="store_true", help="links to the images of a folder, not copies")
    given = parser.parse_args(rest)
    options = ExportOptions(
        fraction=given.fraction,
        method=given.method,
        seeds=given.seeds,
        order=given.order,
        quotas=given.quotas,
        quota_of_class=dict(_quota(one) for one in given.quota),
        at_least=given.at_least,
        drops_label_errors=given.drop_label_errors,
        is_linked=given.link,
    )
    _say_export(export_run(given.run, given.out or given.run / "export", options))


def _quota(given: str) -> tuple[str, int]:
    name, _, number = given.rpartition("=")
    if not name or not number.isdecimal():
        raise ValueError(f"--quota must be CLASS=N, a class and a whole number of points; got {given!r}.")
    return name, int(number)


def _say_export(export: Export) -> None:
    lines = [f"{export.num_chosen} of {export.num_examples} points, those of {export.method}"]
    lines += [f"  {name}: {chosen} of {there}" for name, (there, chosen) in export.counts.items()]
    if export.num_suspected is not None:
        lines.append(f"{export.num_suspected} suspected label errors left out")
    lines += export.notes
    if export.data_options:
        shown = (f"datamodule.{name}={_override(value)}" for name, value in export.data_options.items())
        lines.append(f"read it with {' '.join(shown)}")
    sys.stdout.write("\n".join([*lines, f"export folder: {export.folder}", ""]))


def _override(value: Any) -> str:
    """A value as Hydra reads it on the command line."""
    if value is None:
        return "null"
    return f"[{','.join(map(_override, value))}]" if isinstance(value, list | tuple) else str(value)


def _say_folder(folder: Path | None) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one is enough
        sys.stdout.write(f"run folder: {folder}\n")


def _stopping_cleanly(work: Callable[[], None]) -> None:
    """Do the work; a user's fault ends in its message, Ctrl-C in a word that the run folder is usable."""
    try:
        work()
    except KeyboardInterrupt:
        sys.stderr.write(
            "\nreducr: interrupted. Everything that had finished is in the run folder; `reducr resume RUN` goes on.\n"
        )
        sys.exit(130)
    except _USER_FAULTS as error:
        sys.stderr.write(f"reducr: {error}\n")
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = next((name for name, packages in _EXTRAS.items() if (error.name or "").split(".")[0] in packages), None)
        if extra is None:
            raise
        sys.stderr.write(f"reducr: {error.name} is not installed: pip install 'reducr[{extra}]' brings it.\n")
        sys.exit(2)


def _experiments() -> list[str]:
    folder = Path(__file__).parent / "configs"
    with (folder / "published" / "experiments.csv").open(newline="", encoding="utf-8") as table:
        published = [row["experiment"] for row in csv.DictReader(table)]
    return sorted([*published, *(path.stem for path in (folder / "experiment").glob("*.yaml"))])


if __name__ == "__main__":
    main()
