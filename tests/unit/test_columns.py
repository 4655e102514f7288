import pandas as pd
import pytest
import torch

from reducr.data.own.columns import Rows, Source, check_columns, coded


def rows_of(train, *, holdout=None, test=None, **options):
    """Rows with one column ``a``."""
    parts = {"train": train, "holdout": holdout, "test": test}
    sources = [Source(f"{part}.csv", part, pd.DataFrame({"a": cells})) for part, cells in parts.items() if cells]
    return Rows.of(sources, kind="features", input_columns=("a",), **options)


def coded_values(*args, **options):
    code, names = coded(rows_of(*args, **options), "a", option="target_column")
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
    assert coded_values(list(cells)) == (code, names)


def test_other_parts_have_the_numbers_of_the_training_part():
    assert coded_values(["b", "a", "b", "a"], test=["b", "b", "a"]) == ([1, 0, 1, 0, 1, 1, 0], ("a", "b"))
    # whole numbers are the same in whatever form a part has them
    assert coded_values([10, 9, 10, 9], holdout=["9"], test=[10.0]) == ([1, 0, 1, 0, 0, 1], ("9", "10"))


def test_values_may_have_names():
    rows = rows_of([1, 0, 1, 0], value_names={"a": ("cat", "dog", "none")})
    assert coded(rows, "a", option="target_column").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["0.5", "1", "0.5", "1"], r"is not categorical: it holds broken numbers, such as 0\.5\."),
        ([0.1, 2.0, 0.1, 2.0], r"is not categorical: it holds broken numbers, such as 0\.1\."),
        (
            [3 * row % 600 for row in range(800)],
            r"is not categorical: it has 200 different values in 800 training rows",
        ),
        (["a", "b", "c", "c", "b"], r"is not categorical: it has 3 different values in 5 training rows\."),
    ],
)
def test_what_is_not_categorical(cells, message):
    with pytest.raises(ValueError, match=r"column 'a' \(datamodule\.target_column\) " + message):
        coded_values(cells)


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
    assert len(coded_values(cells)[1]) == len(set(cells))


def test_missing_values_are_counted_and_the_first_is_placed():
    expected = r"2 rows without a value in column 'a' \(datamodule\.target_column\); the first is row 3 of train\.csv"
    with pytest.raises(ValueError, match=expected):
        coded_values(["x", "y", "", "x", "y"], test=[None, "x"])


def test_a_value_that_the_training_part_lacks_is_named():
    expected = (
        r"3 rows with a value that no training row has; the first is row 2 of test\.csv, with 'z'\. Training rows"
    )
    with pytest.raises(ValueError, match=expected + r" have x, y\."):
        coded_values(["x", "y", "x", "y"], holdout=["x"], test=["y", "z", "w", "z"])


def test_rows_know_where_they_were_read():
    rows = rows_of(["a", "b"], holdout=["c"], test=["d", "e", "f"])
    assert len(rows) == 6
    places = [rows.first((rows.frame["a"] == cell).to_numpy()) for cell in "abcdef"]
    assert places == [
        "row 1 of train.csv", "row 2 of train.csv", "row 1 of holdout.csv",
        "row 1 of test.csv", "row 2 of test.csv", "row 3 of test.csv",
    ]  # fmt: skip
    left = rows.taken((rows.frame["a"] != "b").to_numpy())
    assert left.first((left.frame["a"] == "f").to_numpy()) == "row 3 of test.csv"
    assert {part: positions.tolist() for part, positions in left.parts().items()} == {
        "holdout": [1],
        "test": [2, 3, 4],
    }


def test_a_part_that_lost_all_its_rows_is_still_a_part():
    rows = rows_of(["a", "b"], holdout=["c"])
    left = rows.taken(rows.is_train)
    assert torch.equal(left.parts()["holdout"], torch.empty(0, dtype=torch.int64))


def test_a_source_without_rows_is_an_error():
    with pytest.raises(ValueError, match=r"none\.csv has no rows"):
        Rows.of([Source("none.csv", "train", pd.DataFrame({"a": []}))], kind="text", input_columns=("a",))


def test_several_columns_make_the_second_text():
    frame = pd.DataFrame({"a": ["1", "2"], "b": ["x", "y"], "c": ["u", "v"]})
    rows = Rows.of([Source("t", "train", frame)], kind="text", input_columns=("b", "a", "c"))
    assert rows.texts().first == ["x", "y"]
    assert rows.texts().second == ["1 u", "2 v"]
    assert Rows.of([Source("t", "train", frame)], kind="text", input_columns=("b",)).texts().second is None


def test_a_missing_column_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown column 'txet' of train\.csv\. Did you mean 'text'\? There are: label"
    ):
        check_columns(["label", "txet"], ["label", "text"], name="train.csv")
