import numpy as np
import pandas as pd
import pytest
import torch

from reducr.data.own.features import Features, strings


def encoded(columns, train=None):
    frame = pd.DataFrame(columns)
    features = Features.of(frame, list(frame.columns))
    return features.encoded(torch.arange(len(frame)) if train is None else torch.tensor(train))


def test_numbers_are_standardised_by_the_training_examples():
    inputs = encoded({"a": [1.0, 3.0, 100.0], "b": [5.0, 5.0, 8.0]}, train=[0, 1])
    assert inputs.dtype == torch.float32
    # mean 2 and standard deviation 1; mean 5 and no deviation
    assert inputs.tolist() == [[-1.0, 0.0], [1.0, 0.0], [98.0, 3.0]]


def test_missing_numbers_are_the_mean_and_are_marked():
    inputs = encoded({"a": ["1", "", "3", "NA"], "b": ["1", "2", "3", "4"]}, train=[0, 1, 2])
    assert inputs[:, 0].tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert inputs[:, 2].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert inputs.shape == (4, 3)
    assert inputs[:, 1].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5, 2 * 1.5**0.5], abs=1e-6)


def test_a_number_that_no_training_example_has_is_zero():
    assert encoded({"a": ["", "", "7"]}, train=[0, 1]).tolist() == [[0.0, 1.0], [0.0, 1.0], [7.0, 0.0]]


def test_categories_are_the_values_of_training_examples():
    inputs = encoded({"a": ["x", "y", "x", "z", ""]}, train=[0, 1, 4])
    assert inputs.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_numbers_come_first_then_marks_then_categories():
    inputs = encoded({"a": ["u", "v"], "b": [1.0, np.nan], "c": [True, False], "d": [2, 4]})
    assert inputs.tolist() == [[0, -1, 0, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("column", "is_number"),
    [
        (["1", "-2.5", "1e3"], True),
        (["1", "N/A", "nan"], True),
        ([" 1 ", "2", "null"], True),
        (["1", "two", "3"], False),
        (["1", "NAN!", "3"], False),
        ([True, False, True], False),
        (["True", "False", "True"], False),
        ([1, 2, None], True),
        (pd.array([1, None, 3], dtype="Int64"), True),
        (pd.Categorical(["1", "2", "1"]), True),
        (pd.Categorical(["a", "b", "a"]), False),
        ([1, "2", 3.5], True),
        ([1, "b", None], False),
    ],
)
def test_what_is_a_column_of_numbers(column, is_number):
    features = Features.of(pd.DataFrame({"a": column}), ["a"])
    assert (features.numbers.shape[1], features.categories.shape[1]) == ((1, 0) if is_number else (0, 1))


def test_an_infinite_number_is_an_error():
    with pytest.raises(ValueError, match="Column 'a' holds an infinite number"):
        Features.of(pd.DataFrame({"a": ["1", "inf"]}), ["a"])


def test_a_thousand_categories_are_the_most():
    frame = pd.DataFrame({"a": [f"x{number}" for number in range(1001)]})
    assert Features.of(frame[:1000], ["a"]).encoded(torch.arange(1000)).shape == (1000, 1000)
    with pytest.raises(
        ValueError, match=r"Column 'a' has 1001 different values, such as 'x0'; .* may have at most 1000"
    ):
        Features.of(frame, ["a"])


def test_the_table_is_not_changed():
    values = np.array([1.0, np.nan, 3.0])
    frame = pd.DataFrame({"a": values})
    Features.of(frame, ["a"]).encoded(torch.tensor([0]))
    assert frame["a"].tolist()[0] == 1.0
    assert np.isnan(frame["a"][1])


def test_missing_cells_are_empty_strings():
    assert strings(pd.Series(["NA", "", None, "b"])).tolist() == ["NA", "", "", "b"]
    assert strings(pd.Series([1, 2])).tolist() == ["1", "2"]
    assert strings(pd.Series([1.5, None])).tolist() == ["1.5", ""]
    assert strings(pd.Series([True, False])).tolist() == ["True", "False"]
