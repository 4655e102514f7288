"""Numbers and categories of a table as model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

# Each value of a categorical column becomes one input.
_MAX_CATEGORIES = 1000
_MISSING_NUMBER = ("", "na", "n/a", "nan", "null", "none")


@dataclass(frozen=True)
class Features:
    """Numbers and categories of N examples.

    Args:
        numbers: (N, K) float64; NaN where a number is missing.
        categories: (N, M) int64, the category in each of M columns, counted from 0.
    """

    numbers: Tensor
    categories: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: Sequence[str]) -> Features:
        """The features in ``columns`` of a table.

        A column is numeric if every cell is a number or missing. Any other column is categorical, with missing values
        as a category of their own.

        Raises:
            ValueError: for a column with an infinite number or with more than 1,000 categories.
        """
        import pandas as pd

        numbers, categories = [], []
        for column in columns:
            values = _numbers(frame[column])
            if values is None:
                codes, unique = pd.factorize(strings(frame[column]))
                if len(unique) > _MAX_CATEGORIES:
                    raise ValueError(
                        f"Column {column!r} has {len(unique)} different values, such as {unique[0]!r}; a categorical "
                        f"feature may have at most {_MAX_CATEGORIES}. Leave it out of `datamodule.feature_columns`, or "
                        "name it in `datamodule.text_columns` if it is text."
                    )
                categories.append(torch.from_numpy(codes))
            elif bool(values.isinf().any()):
                raise ValueError(f"Column {column!r} holds an infinite number. Replace it, or leave its cell empty.")
            else:
                numbers.append(values)
        return cls(_columns(numbers, len(frame), torch.float64), _columns(categories, len(frame), torch.int64))

    def encoded(self, train_source: Tensor) -> Tensor:
        """The inputs of all examples, scaled and one-hot encoded by the training examples.

        In this order:

        1. numbers, less the training mean and divided by the training standard deviation (by 1 if that is 0); a
           missing number is the mean;
        2. for each numeric column with missing numbers, 1 where the number is missing, else 0;
        3. each categorical column one-hot over its training values; all zeros for any other value.

        Args:
            train_source: (M,) int64 positions of the training examples.

        Returns:
            (N, F) float32.
        """
        is_missing = self.numbers.isnan()
        train, is_known = self.numbers[train_source], ~is_missing[train_source]
        num_known = is_known.sum(dim=0).clamp(min=1)
        mean = train.nan_to_num().sum(dim=0) / num_known
        deviation = (((train - mean) ** 2).nan_to_num().sum(dim=0) / num_known).sqrt()
        numbers = ((self.numbers - mean) / deviation.where(deviation > 0, 1.0)).nan_to_num()
        parts = [numbers.float(), is_missing[:, is_missing.any(dim=0)].float()]
        parts += [(values[:, None] == values[train_source].unique()).float() for values in self.categories.T]
        return torch.cat(parts, dim=1)


def strings(values: pd.Series[Any]) -> pd.Series[str]:
    """The cells as strings; "" for missing cells."""
    return values.astype("object").where(values.notna(), "").astype("str")


def _numbers(values: pd.Series[Any]) -> Tensor | None:
    """(N,) float64, NaN where missing; None if any value is not a number."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(values):
        return None
    if not pd.api.types.is_numeric_dtype(values):
        cells = strings(values).str.strip()
        cells = cells.mask(cells.str.lower().isin(_MISSING_NUMBER))
        values = pd.to_numeric(cells, errors="coerce")
        if not values.isna().equals(cells.isna()):
            return None
    return torch.from_numpy(values.to_numpy(dtype="float64", na_value=float("nan"), copy=True))


def _columns(columns: list[Tensor], num_rows: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(columns, dim=1) if columns else torch.empty((num_rows, 0), dtype=dtype)
