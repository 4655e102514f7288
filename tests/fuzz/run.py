"""Fuzz the public interface: ``python tests/fuzz/run.py --cases 100000``.

Prints for each target how many inputs ran, how many were refused with a proper error, and what was found; the exit
status says whether anything was. The same seed gives the same inputs.
"""

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.targets import TARGETS, RefusedError


def fuzz(name: str, *, num_cases: int, base_seed: int = 0) -> tuple[int, int, str]:
    """Inputs that ran, those of them that were refused, and the smallest input that fails with its error, if any."""
    inputs, check, _ = TARGETS[name]
    counts = {"ran": 0, "refused": 0}

    def run(case):
        counts["ran"] += 1
        try:
            check(case)
        except RefusedError:
            counts["refused"] += 1

    options = settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    found = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            seed(base_seed)(options(given(inputs)(run)))()
        except BaseException as error:  # whatever comes is a finding
            if isinstance(error, KeyboardInterrupt):
                raise
            found = "\n" + "".join(traceback.format_exception(error)[-8:])
    return counts["ran"], counts["refused"], found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="inputs over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total_share = sum(TARGETS[name][2] for name in arguments.targets)
    print(f"seed {arguments.seed}")  # noqa: T201
    total, findings = 0, 0
    for name in arguments.targets:
        started = time.perf_counter()
        num_cases = -(-arguments.cases * TARGETS[name][2] // total_share)
        ran, refused, found = fuzz(name, num_cases=num_cases, base_seed=arguments.seed)
        total, findings = total + ran, findings + bool(found)
        seconds = time.perf_counter() - started
        print(f"{name:20} {ran:7} ran, {refused:6} refused, {seconds:6.0f} s  {found or 'nothing found'}", flush=True)  # noqa: T201
    print(f"{total} ran in all, {findings} findings")  # noqa: T201
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
