"""Try whether the tests notice changes of the code: ``python tests/mutants/run.py [NAME ...]``.

Each mutant of ``tests/mutants/faults.py`` is made in a copy of ``src``, and its tests run against the copy. Prints
whether they noticed; the exit status says whether any mutant survived. ``--tests`` runs other tests than a mutant
names, for instance ``--tests tests`` for the whole default lane.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.faults import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
STATUS = {0: "SURVIVED", 1: "killed"}


class StaleMutantError(ValueError):
    """The code has changed, and a mutant no longer fits it."""


def mutated(text: str, mutant: Mutant) -> str:
    """The text of the mutant's file with its change."""
    if text.count(mutant.old) != 1:
        raise StaleMutantError(
            f"mutant {mutant.name!r}: its old text must occur once in src/reducr/{mutant.file}; it occurs "
            f"{text.count(mutant.old)} times. Bring tests/mutants/faults.py up to date."
        )
    return text.replace(mutant.old, mutant.new)


def outcome(mutant: Mutant, *, tests: list[str]) -> tuple[str, str]:
    """Run tests against the mutant; ``killed``, ``SURVIVED`` or ``ERROR``, and what pytest printed last."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        path = source / "reducr" / mutant.file
        path.write_text(mutated(path.read_text(), mutant))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return STATUS.get(done.returncode, "ERROR"), done.stdout[-2000:] + done.stderr[-2000:]


def failure_of(output: str) -> str:
    """The test that failed, by pytest's summary."""
    return next((line.removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")), "")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to try; default: all")
    parser.add_argument("--tests", nargs="+", help="arguments of pytest in place of each mutant's own tests")
    arguments = parser.parse_args(words)
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(arguments.names) - by_name.keys():
        parser.error(f"unknown mutant {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    statuses = []
    for name in arguments.names or by_name:
        started = time.perf_counter()
        try:
            status, output = outcome(by_name[name], tests=arguments.tests or shlex.split(by_name[name].tests))
        except StaleMutantError as error:
            status, output = "ERROR", str(error)
        statuses.append(status)
        print(f"{status:9} {time.perf_counter() - started:6.0f} s  {name:45} {failure_of(output)[:120]}", flush=True)  # noqa: T201
        if status == "ERROR":
            print(output)  # noqa: T201
    print(f"{statuses.count('killed')} of {len(statuses)} mutants killed")  # noqa: T201
    return int(statuses.count("killed") < len(statuses))


if __name__ == "__main__":
    sys.exit(main())
