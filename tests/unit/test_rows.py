import pandas as pd
import pytest
import torch

from reducr.data.own.rows import Rows, Source, check_columns


def rows_of(train, *, holdout=None, test=None, **options):
    """Rows with one column ``a``."""
    parts = {"train": train, "holdout": holdout, "test": test}
    sources = [Source(f"{part}.csv", part, pd.DataFrame({"a": cells})) for part, cells in parts.items() if cells]
    return Rows.of(sources, kind="features", input_columns=("a",), **options)


def test_rows_know_where_they_were_read():
    rows = rows_of(["a", "b"], holdout=["c"], test=["d", "e", "f"])
    assert len(rows) == 6
    places = [rows.first_place((rows.frame["a"] == cell).to_numpy()) for cell in "abcdef"]
    assert places == [
        "row 1 of train.csv", "row 2 of train.csv", "row 1 of holdout.csv",
        "row 1 of test.csv", "row 2 of test.csv", "row 3 of test.csv",
    ]  # fmt: skip
    rest = rows.where((rows.frame["a"] != "b").to_numpy())
    assert rest.first_place((rest.frame["a"] == "f").to_numpy()) == "row 3 of test.csv"
    assert {part: positions.tolist() for part, positions in rest.parts().items()} == {
        "holdout": [1],
        "test": [2, 3, 4],
    }


def test_a_part_that_lost_all_its_rows_is_still_a_part():
    rows = rows_of(["a", "b"], holdout=["c"])
    rest = rows.where(rows.is_train)
    assert torch.equal(rest.parts()["holdout"], torch.empty(0, dtype=torch.int64))


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
        check_columns(["label", "txet"], ["label", "text"], owner="train.csv")
