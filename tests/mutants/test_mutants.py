"""The mutants fit the code, and the command that tries them tells a caught one from one that is not."""

from pathlib import Path

import pytest

from mutants.faults import MUTANTS, Mutant
from mutants.run import ROOT, main, mutated, outcome

pytestmark = pytest.mark.long
QUICK = ["tests/unit/test_quotas.py"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code_and_names_tests(mutant):
    text = (ROOT / "src" / "reducr" / mutant.file).read_text()
    compile(mutated(text, mutant), mutant.file, "exec")
    assert Path(ROOT, mutant.tests.split()[0].split("::")[0]).exists()
    assert [other.name for other in MUTANTS].count(mutant.name) == 1


def test_a_mutant_is_killed_or_survives(capsys):
    assert main(["uniform_share_of_the_groups_present", "--tests", *QUICK]) == 0
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith("killed")
    assert "test_the_uniform_share_is_that_of_all_groups" in line
    assert summary == "1 of 1 mutants killed"
    same = Mutant("no_fault", "functional/quotas.py", "SMALLEST_QUOTA = 1e-9", "SMALLEST_QUOTA = 1e-09", "")
    assert outcome(same, tests=QUICK)[0] == "SURVIVED"
    broken = Mutant("no_python", "functional/quotas.py", "SMALLEST_QUOTA = 1e-9", "SMALLEST_QUOTA =", "")
    assert outcome(broken, tests=QUICK)[0] == "ERROR"


def test_a_mutant_that_no_longer_fits_is_refused():
    stale = Mutant("stale", "functional/quotas.py", "what is not there", "", "")
    with pytest.raises(ValueError, match=r"'stale': its old text must occur once in src/reducr/functional/quotas\.py"):
        outcome(stale, tests=QUICK)
