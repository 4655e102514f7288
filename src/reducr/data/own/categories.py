"""Columns of classes or groups as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reducr.data.own.features import strings
from reducr.data.own.rows import Rows, row_count

# Treat an integer column as continuous if it has more than 100 non-contiguous values, each seen fewer than five times
# on average.
_MAX_SPARSE_INTEGERS, _MIN_ROWS_PER_INTEGER = 100, 5
_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_DECIMAL_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class Categories(NamedTuple):
    """A column as category numbers.

    Args:
        code: (N,) int64 in [0, K).
        names: (K,) the values.
    """

    code: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, rows: Rows, column: str, *, option: str) -> Categories:
        """Number the values of a column in the order they have among training rows.

        Whole numbers sort by value, all other values alphabetically.

        Args:
            rows: N rows.
            column: strings, booleans or whole numbers; 3, "3" and 3.0 are equal.
            option: option that names the column, for error messages.

        Raises:
            ValueError: for missing values, numbers that are not whole, a column that looks continuous, or a value that
                no training row has. A column looks continuous if it has more different values than half the training
                rows, or more than 100 non-contiguous integers that each occur fewer than five times on average.
        """
        import pandas as pd

        title = f"Column {column!r} (`datamodule.{option}`)"
        cells = strings(rows.frame[column])
        is_missing = (cells == "").to_numpy()
        if is_missing.any():
            raise ValueError(
                f"{title} has no value in {row_count(is_missing)}; the first is {rows.first_place(is_missing)}. Fill "
                "them in or remove these rows."
            )
        number, unique = pd.factorize(cells)
        values = _sortable(unique.tolist(), title)
        is_in_train = np.isin(np.arange(len(unique)), number[rows.is_train])
        categories = sorted({value for value, is_in in zip(values, is_in_train, strict=True) if is_in})
        num_train = int(rows.is_train.sum())
        if 2 * len(categories) > num_train or _is_continuous(categories, num_train):
            raise ValueError(
                f"{title} is not categorical: it has {len(categories)} different values in {num_train} training rows. "
                "Name a column of classes."
            )
        code_of = {value: code for code, value in enumerate(categories)}
        code = np.array([code_of.get(value, -1) for value in values], dtype=np.int64)[number]
        is_unknown = code < 0
        if is_unknown.any():
            value = unique[number[int(is_unknown.argmax())]]
            raise ValueError(
                f"{title} has values in {row_count(is_unknown)} that no training row has; the first is "
                f"{rows.first_place(is_unknown)}, with {value!r}. Training rows have {', '.join(map(str, categories))}."
            )
        names = rows.value_names.get(column)
        return cls(
            torch.from_numpy(code),
            tuple(str(value) if names is None else names[int(value)] for value in categories),
        )


def _sortable(cells: list[str], title: str) -> list[Any]:
    """Different values: as integers if all are whole numbers, else unchanged.

    Raises:
        ValueError: if all are numbers, but not all whole.
    """
    matches = [_WHOLE_NUMBER.fullmatch(cell) for cell in cells]
    if all(matches):
        return [int(match[1]) for match in matches if match]
    if all(_DECIMAL_NUMBER.fullmatch(cell) for cell in cells):
        fraction = next((cell for cell in cells if float(cell) % 1), None)
        if fraction is not None:
            raise ValueError(
                f"{title} is not categorical: it holds numbers that are not whole, such as {fraction}. Name a column "
                "of classes."
            )
    return cells


def _is_continuous(categories: Sequence[Any], num_train: int) -> bool:
    """Whether these sorted values of ``num_train`` rows look like amounts rather than categories."""
    if not isinstance(categories[0], int) or categories[-1] - categories[0] + 1 == len(categories):
        return False
    return len(categories) > _MAX_SPARSE_INTEGERS and num_train < _MIN_ROWS_PER_INTEGER * len(categories)
