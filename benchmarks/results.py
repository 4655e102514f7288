"""Read and write ``results.json``, and render its table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Figure
from reducr._internal.files import write_text_atomically

FORMAT = 1
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"
_PACKAGES = ("torch", "numpy", "lightning", "reducr")


def environment() -> dict[str, Any]:
    """What the figures depend on: commit, machine and versions."""
    return {
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
    }


def read(path: Path) -> dict[str, Any]:
    """All results so far, by benchmark; empty if the file does not exist.

    Raises:
        ValueError: if another version of this program wrote the file.
    """
    if not path.is_file():
        return {}
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT:
        raise ValueError(f"{path} has format {results.get('format')!r}; this version reads format {FORMAT}. Remove it.")
    benchmarks: dict[str, Any] = results["benchmarks"]
    return benchmarks


def write(path: Path, benchmarks: Mapping[str, Any], *, order: Iterable[str]) -> None:
    """Write all results atomically in this order; results of benchmarks that no longer exist are dropped."""
    ordered = {name: benchmarks[name] for name in order if name in benchmarks}
    write_text_atomically(path, json.dumps({"format": FORMAT, "benchmarks": ordered}, indent=1) + "\n")


def entry(figures: Iterable[Figure], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON entry of one benchmark, measured in this ``environment``."""
    return {**environment, "figures": [_figure(figure) for figure in figures]}


def table(benchmarks: Mapping[str, Any]) -> str:
    """All figures as a Markdown table, and the machines they were measured on."""
    lines = ["| what | target | median | quartiles | over | met |", "| --- | ---: | ---: | ---: | --- | --- |"]
    lines += [_line(figure) for result in benchmarks.values() for figure in result["figures"]]
    names_by_environment: dict[str, list[str]] = {}
    for name, result in benchmarks.items():
        names_by_environment.setdefault(_environment_text(result), []).append(name)
    lines += ["", *(f"{text}: {', '.join(names)}." for text, names in names_by_environment.items())]
    return "\n".join(lines)


def put_table(document: Path, benchmarks: Mapping[str, Any]) -> None:
    """Put the table between its two marks in a document; raises like ``put_between``."""
    put_between(document, table(benchmarks), begin=BEGIN, end=END)


def put_between(document: Path, text: str, *, begin: str, end: str) -> None:
    """Replace the text between two marks in a document.

    Raises:
        ValueError: if the document does not contain each mark exactly once.
    """
    whole = document.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise ValueError(f"{document} must contain {begin} and {end} exactly once each; the table goes between them.")
    before, rest = whole.split(begin)
    after = rest.split(end)[1]
    write_text_atomically(document, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _figure(figure: Figure) -> dict[str, Any]:
    entries = {
        "what": figure.what,
        "unit": figure.unit,
        "over": figure.over,
        "at_most": figure.at_most,
        "at_least": figure.at_least,
        "is_met": figure.is_met,
        "median": _rounded(figure.median),
        "quartiles": [_rounded(value) for value in figure.quartiles],
        "values": [_rounded(value) for value in figure.values],
    }
    return {name: value for name, value in entries.items() if value not in ("", None)}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _line(figure: Mapping[str, Any]) -> str:
    unit = f" {figure['unit']}" if "unit" in figure else ""
    bounds = [f"{sign} {figure[name]:g}{unit}" for name, sign in _SIGNS.items() if name in figure]
    lower, upper = figure["quartiles"]
    met = {True: "yes", False: "**no**", None: ""}[figure.get("is_met")]
    cells = [
        figure["what"],
        "".join(bounds),
        f"{_number(figure['median'])}{unit}",
        f"{_number(lower)} to {_number(upper)}",
        figure.get("over", ""),
        met,
    ]
    return f"| {' | '.join(cells)} |"


_SIGNS = {"at_most": "≤", "at_least": "≥"}


def _number(value: float) -> str:
    """Three decimals near 1, else three significant digits."""
    return f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}"


def _environment_text(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    names = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB; "
        f"{names}; commit {result['commit']}"
    )


def _commit() -> str:
    """The current commit, with ``+`` if the code has uncommitted changes; ``unknown`` outside a repository."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit + "+" * bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
