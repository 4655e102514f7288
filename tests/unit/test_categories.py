import pandas as pd
import pytest

from reducr.data.own.categories import Categories
from reducr.data.own.rows import Rows, Source


def rows_of(train, *, holdout=None, test=None, **options):
    """Rows with one column ``a``."""
    parts = {"train": train, "holdout": holdout, "test": test}
    sources = [Source(f"{part}.csv", part, pd.DataFrame({"a": cells})) for part, cells in parts.items() if cells]
    return Rows.of(sources, kind="features", input_columns=("a",), **options)


def categories(*args, **options):
    code, names = Categories.of(rows_of(*args, **options), "a", option="target_column")
    return code.tolist(), names


@pytest.mark.parametrize(
    ("cells", "code", "names"),
    [
        (["b", "a", "b", "a"], [1, 0, 1, 0], ("a", "b")),
        (["10", "9", "10", "9"], [1, 0, 1, 0], ("9", "10")),
        ([-1, 10, 9, 9, 10, -1], [0, 2, 1, 1, 2, 0], ("-1", "9", "10")),
        (["10", "x", "9", "9", "10", "x"], [0, 2, 1, 1, 0, 2], ("10", "9", "x")),
        ([True, False, True, False], [1, 0, 1, 0], ("False", "True")),
        ([2.0, 1.0, 2.0, 1.0], [1, 0, 1, 0], ("1", "2")),
        (["007", "7", "007", "7"], [0, 1, 0, 1], ("007", "7")),
        (["NA", "null", "NA", "null"], [0, 1, 0, 1], ("NA", "null")),
        (["1.", "2.", "1.", "2."], [0, 1, 0, 1], ("1.", "2.")),
        (pd.Categorical(["u", "v", "u", "v"]), [0, 1, 0, 1], ("u", "v")),
    ],
)
def test_values_become_numbers_in_their_order(cells, code, names):
    assert categories(list(cells)) == (code, names)


def test_other_parts_have_the_numbers_of_the_training_part():
    assert categories(["b", "a", "b", "a"], test=["b", "b", "a"]) == ([1, 0, 1, 0, 1, 1, 0], ("a", "b"))
    # whole numbers are the same in whatever form a part has them
    assert categories([10, 9, 10, 9], holdout=["9"], test=[10.0]) == ([1, 0, 1, 0, 0, 1], ("9", "10"))


def test_values_may_have_names():
    rows = rows_of([1, 0, 1, 0], value_names={"a": ("cat", "dog", "none")})
    assert Categories.of(rows, "a", option="target_column").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["0.5", "1", "0.5", "1"], r"is not categorical: it holds numbers that are not whole, such as 0\.5\."),
        ([0.1, 2.0, 0.1, 2.0], r"is not categorical: it holds numbers that are not whole, such as 0\.1\."),
        (
            [3 * row % 600 for row in range(800)],
            r"is not categorical: it has 200 different values in 800 training rows",
        ),
        (["a", "b", "c", "c", "b"], r"is not categorical: it has 3 different values in 5 training rows\."),
    ],
)
def test_what_is_not_categorical(cells, message):
    with pytest.raises(ValueError, match=r"^Column 'a' \(`datamodule\.target_column`\) " + message):
        categories(cells)


@pytest.mark.parametrize(
    "cells",
    [
        [row % 200 for row in range(800)],  # no gaps
        [3 * row % 600 for row in range(1000)],  # five rows each
        [3 * row % 300 for row in range(400)],  # a hundred values
        [f"intent {row % 200}" for row in range(800)],
    ],
)
def test_many_small_classes_are_categories(cells):
    assert len(categories(cells)[1]) == len(set(cells))


def test_missing_values_are_counted_and_the_first_is_placed():
    expected = r"Column 'a' \(`datamodule\.target_column`\) has no value in 2 rows; the first is row 3 of train\.csv"
    with pytest.raises(ValueError, match=expected):
        categories(["x", "y", "", "x", "y"], test=[None, "x"])


def test_a_value_that_the_training_part_lacks_is_named():
    expected = (
        r"has values in 3 rows that no training row has; the first is row 2 of test\.csv, with 'z'\. Training rows"
    )
    with pytest.raises(ValueError, match=expected + r" have x, y\."):
        categories(["x", "y", "x", "y"], holdout=["x"], test=["y", "z", "w", "z"])
