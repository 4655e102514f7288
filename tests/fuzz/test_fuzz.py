"""A few hundred inputs for each target; ``python tests/fuzz/run.py`` runs as many as one likes."""

import pytest

from fuzz.run import fuzz
from fuzz.targets import TARGETS

CASES_PER_SHARE, CASES_PER_SHARE_OF_THE_LONG_LANE = 6, 200


@pytest.mark.explores
@pytest.mark.parametrize("name", TARGETS)
def test_every_input_ends_in_a_right_answer_or_a_proper_error(name, is_long_lane):
    num_cases = (CASES_PER_SHARE_OF_THE_LONG_LANE if is_long_lane else CASES_PER_SHARE) * TARGETS[name][2]
    ran, refused, found = fuzz(name, num_cases=num_cases)
    assert not found, found
    assert ran >= num_cases
    assert 0 < refused < ran
