"""Numbers and categories of a table as the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

# of a column that becomes one input for each
_MAX_VALUES = 1000
# what a column of numbers may hold where a number is missing
_NO_NUMBER = ("", "na", "n/a", "nan", "null", "none")


@dataclass(frozen=True)
class Features:
    """N points described by numbers and categories.

    Args:
        numbers: (N, K) float64; NaN where one is missing.
        categories: (N, M) int64, the number of the value in each of M columns, from 0 on.
    """

    numbers: Tensor
    categories: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: Sequence[str]) -> Features:
        """The features in ``columns`` of a table.

        A column is one of numbers if every cell of it is a number or missing; else one of categories, of which a
        missing value is one.

        Raises:
            ValueError: for a column with an infinite number, or with more than 1,000 categories; names it.
        """
        import pandas as pd

        numbers, categories = [], []
        for column in columns:
            values = _numbers(frame[column])
            if values is None:
                codes, found = pd.factorize(strings(frame[column]))
                if len(found) > _MAX_VALUES:
                    raise ValueError(
                        f"column {column!r} has {len(found)} different values, such as {found[0]!r}; a feature that is "
                        f"not a number may have at most {_MAX_VALUES}. Leave it out of datamodule.feature_columns, or "
                        "name it in datamodule.text_columns if it is a text."
                    )
                categories.append(torch.from_numpy(codes))
            elif bool(values.isinf().any()):
                raise ValueError(f"column {column!r} holds an infinite number. Replace it, or leave its cell empty.")
            else:
                numbers.append(values)
        return cls(_columns(numbers, len(frame), torch.float64), _columns(categories, len(frame), torch.int64))

    def encoded(self, train_source: Tensor) -> Tensor:
        """The inputs of all points.

        Each number less the mean of the training points, divided by their standard deviation (1 where that is 0); a
        missing one is the mean. Then, for each column of numbers with a missing one, 1 where it is missing, else 0.
        Then, for each value that a column of categories has among the training points, 1 where it is the point's, else
        0; a point with another value has zeros alone.

        Args:
            train_source: (M,) int64, the positions of the training points.

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
    """The cells as strings, "" where missing."""
    return values.astype("object").where(values.notna(), "").astype("str")


def _numbers(values: pd.Series[Any]) -> Tensor | None:
    """(N,) float64, NaN where missing; None if a value is not a number."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(values):
        return None
    if not pd.api.types.is_numeric_dtype(values):
        cells = strings(values).str.strip()
        cells = cells.mask(cells.str.lower().isin(_NO_NUMBER))
        values = pd.to_numeric(cells, errors="coerce")
        if not values.isna().equals(cells.isna()):
            return None
    return torch.from_numpy(values.to_numpy(dtype="float64", na_value=float("nan"), copy=True))


def _columns(columns: list[Tensor], num_rows: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(columns, dim=1) if columns else torch.empty((num_rows, 0), dtype=dtype)
