"""Rows of all tables of a data set, each with its part and the place where it was read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr._internal.names import unknown_name
from reducr.data.core.raw import PARTS
from reducr.data.io.text import Texts
from reducr.data.own.features import strings

if TYPE_CHECKING:
    import pandas as pd

Mask = NDArray[np.bool_]


class Source(NamedTuple):
    """One file, or one split of a data set, whose rows belong to one part."""

    name: str
    part: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Rows:
    """The rows of all sources in one table.

    Args:
        frame: N rows with all columns in use. Its index numbers all rows in the order they were read.
        part: (N,) the part of each row.
        sources: name, part and number of rows of each source, in the order they were read.
        kind: kind of the input: ``text``, ``features``, ``image`` or ``array``.
        input_columns: columns of the input; the first one is the first text.
        value_names: names of the values 0, 1, 2, ..., by column, for columns whose values have names.
    """

    frame: pd.DataFrame
    part: NDArray[np.str_]
    sources: tuple[tuple[str, str, int], ...]
    kind: str
    input_columns: tuple[str, ...]
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Sequence[Source], **options: Any) -> Rows:
        """Concatenate the rows of all ``sources``.

        Raises:
            ValueError: for a source without rows.
        """
        import pandas as pd

        for source in sources:
            if not len(source.frame):
                raise ValueError(f"{source.name} has no rows.")
        sizes = [len(source.frame) for source in sources]
        return cls(
            pd.concat([source.frame for source in sources], ignore_index=True),
            np.repeat([source.part for source in sources], sizes),
            tuple((name, part, size) for (name, part, _), size in zip(sources, sizes, strict=True)),
            **options,
        )

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def is_train(self) -> Mask:
        """(N,) bool, the rows of the training part."""
        return np.equal(self.part, "train")

    def where(self, mask: Mask) -> Rows:
        """The rows where ``mask`` (N,) is true."""
        return replace(self, frame=self.frame[mask], part=self.part[mask])

    def first_place(self, mask: Mask) -> str:
        """The place of the first row where ``mask`` (N,) is true, such as "row 3 of train.csv"."""
        return self.place(int(mask.argmax()))

    def place(self, position: int) -> str:
        """The place of the row at ``position``, such as "row 3 of train.csv"."""
        row = int(self.frame.index[position])
        stops = np.cumsum([size for *_, size in self.sources])
        number = int(np.searchsorted(stops, row, side="right"))
        name, _, size = self.sources[number]
        return f"row {row - int(stops[number]) + size + 1} of {name}"

    def parts(self) -> dict[str, Tensor]:
        """Positions of the rows of the holdout and test parts, if they have sources of their own."""
        names = {part for _, part, _ in self.sources}
        return {part: torch.from_numpy(np.flatnonzero(self.part == part)) for part in PARTS[1:] if part in names}

    def texts(self) -> Texts:
        """The input columns as texts. The second text joins all columns but the first with blanks."""
        first, *others = (strings(self.frame[column]).tolist() for column in self.input_columns)
        return Texts(first, [" ".join(cells) for cells in zip(*others, strict=True)] if others else None)

    def skipped_note(self, mask: Mask, reason: str) -> str:
        """A note for the user about the rows where ``mask`` (N,) is true, which are skipped."""
        return f"Skipped {mask.sum()} of {len(self)} rows {reason}; the first is {self.first_place(mask)}."


def check_columns(names: Iterable[str], columns: Sequence[str], *, owner: str) -> None:
    """Raise ValueError for the first of ``names`` that is not among the ``columns`` of ``owner``."""
    for name in names:
        if name not in columns:
            raise unknown_name("column", name, columns, of=owner)


def row_count(mask: Mask) -> str:
    """The number of rows where ``mask`` (N,) is true, such as "3 rows"."""
    count = int(mask.sum())
    return "1 row" if count == 1 else f"{count} rows"
