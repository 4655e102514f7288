"""Faults that someone could put into the code, and the tests that must notice each of them.

``old`` must occur once in the file. Where a change of the code makes a mutant meaningless, put another one in its
place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        name: unique, words joined by underscores.
        file: in ``src/reducr``.
        old: text of the file.
        new: the text with the fault.
        tests: arguments of pytest that select tests which fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


PARTS = "tests/end_to_end/test_parts_of_the_data.py"
STAGES = "tests/end_to_end/test_finished_stages.py"
QUOTAS = "tests/unit/test_quotas.py"
STRATIFIED = "tests/unit/test_stratified.py"

# Six faults that no test noticed once.
MUTANTS = [
    Mutant(
        "holdout_loader_reads_the_test_part",
        "pipeline/target_stage.py",
        "holdout=ExampleLoader(holdout, batch_size",
        "holdout=ExampleLoader(data.splits.test, batch_size",
        PARTS,
    ),
    Mutant(
        "total_seconds_without_the_reference",
        "pipeline/target_stage.py",
        "total_seconds=irreducible_seconds + fit_seconds",
        "total_seconds=fit_seconds",
        f"{STAGES} -k seconds",
    ),
    Mutant(
        "uniform_share_of_the_groups_present",
        "selectors/priority_sampling.py",
        "self.uniform_share / self.num_groups",
        "self.uniform_share / len(groups.unique())",
        QUOTAS,
    ),
    Mutant(
        "quota_shares_may_be_zero",
        "selectors/priority_sampling.py",
        "shares.clamp(min=SMALLEST_QUOTA)",
        "shares",
        QUOTAS,
    ),
    Mutant(
        "quotas_of_other_rules_may_be_zero",
        "functional/quotas.py",
        "return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())",
        "return quotas",
        QUOTAS,
    ),
    Mutant(
        "validation_overwrites_the_moving_holdout_loss",
        "lightning/target.py",
        "        if self.moving_holdout_loss is None:\n            self.selector",
        "        if True:\n            self.selector",
        PARTS,
    ),
    Mutant(
        "last_example_of_a_group_is_taken",
        "data/core/stratified.py",
        "        gaps[available - totals <= 1] -= counts.sum()",
        "        pass",
        STRATIFIED,
    ),
]
