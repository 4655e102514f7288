import re

import pytest
import torch

from reducr.data.core.overlap import keep_duplicates_together, num_shared, without_overlap


def stays(content, parts, policy="drop"):
    positions = {part: torch.tensor(places) for part, places in parts.items()}
    kept, notes = without_overlap(
        torch.tensor(content), positions, policy=policy, unit="row", name=lambda place: f"row {place}"
    )
    return kept.nonzero().flatten().tolist(), notes


PARTS = {"train": [0, 1, 2], "holdout": [3, 4], "test": [5, 6]}


def test_duplicates_are_dropped_from_training_before_holdout_before_test():
    kept, notes = stays([7, 8, 9, 8, 10, 10, 9], PARTS)
    assert kept == [0, 3, 5, 6]
    first, second = notes
    assert first == (
        "Dropped 2 of 3 rows of the training part, which have the same input as a holdout or test row; the first is "
        "row 1."
    )
    assert second == (
        "Dropped 1 of 2 rows of the holdout part, which have the same input as a test row; the first is row 4."
    )


def test_parts_still_to_be_drawn_do_not_overlap():
    assert stays([1, 1, 1], {"train": [0, 1, 2]}) == ([0, 1, 2], ())
    assert stays([1, 1, 2, 3], {"train": [0, 3], "holdout": [1, 2]})[0] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "policy", "message"),
    [
        (
            [7, 8, 9, 8, 10, 11, 9],
            "error",
            "2 of 3 rows of the training part have the same input as a holdout or test row; the first is row 1.",
        ),
        (
            [7, 8, 9, 10, 11, 11, 12],
            "error",
            "1 of 2 rows of the holdout part have the same input as a test row; the first is row 4.",
        ),
        (
            [7, 8, 8, 7, 8, 10, 11],
            "drop",
            "`datamodule.overlap=drop` would empty the training part: all 3 rows have the same input as a holdout or ",
        ),
    ],
)
def test_overlap_is_an_error(content, policy, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        stays(content, PARTS, policy)


def test_overlap_can_be_allowed():
    assert stays([1] * 7, PARTS, "allow") == (list(range(7)), ())


def kept_together(drawn, rest, content, strata, seed=0):
    drawn, rest = keep_duplicates_together(
        torch.tensor(drawn),
        torch.tensor(rest),
        content=torch.tensor(content),
        strata=torch.tensor(strata),
        generator=torch.Generator().manual_seed(seed),
    )
    assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(len(content)))
    return drawn, rest


def test_a_shared_input_is_replaced_by_another_of_its_stratum():
    content = [5, 5, 6, 7, 8, 9]
    drawn, rest = kept_together([0, 4], [1, 2, 3, 5], content, [0, 0, 0, 0, 1, 1])
    assert drawn.tolist() in ([2, 4], [3, 4])
    assert num_shared(torch.tensor(content), drawn, rest) == 0


def test_an_input_is_drawn_with_all_its_examples():
    """Every input has three examples, so six drawn examples are all those of two inputs."""
    content = torch.arange(30) % 10
    for seed in range(5):
        drawn, rest = kept_together(list(range(6)), list(range(6, 30)), content.tolist(), [0] * 30, seed)
        assert len(drawn) == 6
        assert len(content[drawn].unique()) == 2
        assert num_shared(content, drawn, rest) == 0


def test_inputs_that_cannot_be_kept_together_are_split():
    # the only input of stratum 0 is of another stratum too
    drawn, _ = kept_together([0, 3], [1, 2], [5, 5, 6, 6], [0, 1, 1, 1])
    assert drawn.tolist() in ([0, 1], [0, 2], [0, 3])
    assert 0 in drawn.tolist()
    # two examples cannot be all those of an input that occurs three times
    drawn, _ = kept_together([0, 3], [1, 2, 4, 5], [5, 5, 5, 6, 6, 6], [0] * 6)
    assert len(drawn) == 2


def test_without_shared_inputs_the_draw_and_the_generator_stay():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    drawn, rest = keep_duplicates_together(
        torch.tensor([0]),
        torch.tensor([1]),
        content=torch.arange(2),
        strata=torch.zeros(2, dtype=torch.int64),
        generator=generator,
    )
    assert (drawn.tolist(), rest.tolist()) == ([0], [1])
    assert torch.equal(generator.get_state(), before)
