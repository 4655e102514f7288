"""Rows of anyone's tables: their columns checked and made into targets, groups and parts."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr._internal.names import unknown_name
from reducr.data.core.module import DataModule
from reducr.data.core.overlap import check_policy, without_overlap
from reducr.data.core.raw import PARTS, RawData
from reducr.data.core.transforms import Preprocess
from reducr.data.io.text import Texts, Tokenization, with_tokens
from reducr.data.own.features import strings

if TYPE_CHECKING:
    import pandas as pd

_EMPTY_TEXTS = ("error", "skip")
_TEXT_OPTIONS = ("tokenizer", "num_tokens", "max_length", "cache_dir")
# more whole numbers than the first, with gaps, that come fewer times than the second, are amounts
_MANY_NUMBERS, _FEW_ROWS = 100, 5
_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_DECIMAL_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

Mask = NDArray[np.bool_]


class Source(NamedTuple):
    """A file, or a split of a data set: rows of one part."""

    name: str
    part: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Rows:
    """The rows of all sources in one table.

    Args:
        frame: N rows with all columns in use; the label of a row is its place among all rows that were read.
        part: (N,) the part that each row is in.
        sources: name, part and number of rows of each source, in the order they were read.
        kind: of the input: ``text``, ``features``, ``image`` or ``array``.
        input_columns: what the input is made of; the first one is the first text.
        value_names: by column, the names of its values 0, 1, 2, ..., where they have names.
    """

    frame: pd.DataFrame
    part: NDArray[np.str_]
    sources: tuple[tuple[str, str, int], ...]
    kind: str
    input_columns: tuple[str, ...]
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Sequence[Source], **options: Any) -> Rows:
        """The rows of all ``sources``, in order.

        Raises:
            ValueError: for a source without rows, which it names.
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
        """(N,)."""
        return np.equal(self.part, "train")

    def taken(self, is_taken: Mask) -> Rows:
        """The rows for which ``is_taken`` (N,)."""
        return replace(self, frame=self.frame[is_taken], part=self.part[is_taken])

    def first(self, is_meant: Mask) -> str:
        """Where the first row for which ``is_meant`` (N,) was read, such as "row 3 of train.csv"."""
        return self.name(int(is_meant.argmax()))

    def name(self, position: int) -> str:
        """Where the row at ``position`` was read, such as "row 3 of train.csv"."""
        place = int(self.frame.index[position])
        stops = np.cumsum([size for *_, size in self.sources])
        number = int(np.searchsorted(stops, place, side="right"))
        name, _, size = self.sources[number]
        return f"row {place - int(stops[number]) + size + 1} of {name}"

    def parts(self) -> dict[str, Tensor]:
        """The positions of the parts that sources were given for, but for the training part."""
        given = {part for _, part, _ in self.sources}
        return {part: torch.from_numpy(np.flatnonzero(self.part == part)) for part in PARTS[1:] if part in given}

    def texts(self) -> Texts:
        """The input columns as texts: the first one, and all others joined by blanks."""
        first, *others = (strings(self.frame[column]).tolist() for column in self.input_columns)
        return Texts(first, [" ".join(cells) for cells in zip(*others, strict=True)] if others else None)


class Coded(NamedTuple):
    """A column as numbers 0, 1, 2, ... (N,), and the names of these."""

    code: Tensor
    names: tuple[str, ...]


class ColumnDataModule(DataModule):
    """A data set whose points are the rows of tables, one column being the target.

    Args:
        target_column: what is predicted: strings, booleans or whole numbers. Classes are its different values in the
            training part, whole numbers in their order, all others in alphabetical order.
        group_column: likewise, the groups; None where groups are the targets.
        index_column: ids of points, each of which must come once; None where there are none.
        class_names: in the order of the classes; None for the values themselves.
        empty_texts: ``error``, or ``skip`` for leaving rows out that lack a text.
        overlap: what is done with rows of a given part whose input is in another one too, whatever the target:
            ``error``; ``drop``, which leaves them out of the training part, and those of the holdout part that test;
            or ``allow``.
        tokenizer: and ``num_tokens``, ``max_length``, ``cache_dir``, ``download``: of texts, see ``Tokenization``; None
            for the values there.
        num_tokens: see above.
        max_length: see above.
        image_size: and ``resize``, ``hold``, ``cache_dir``, ``unreadable``: of images, see ``read_images``; None for 32
            pixels and the values there.
        resize: see above.
        hold: see above.
        unreadable: see above.
        cache_dir: of texts or images.
        download: whether what is on the Hugging Face hub may be got from there.
        options: of ``DataModule``; ``preprocess`` is that of 0.5 and 0.5 for images, if None.

    Raises:
        ValueError: for an option that does not exist, is out of range, or is not for this kind of input; in ``read``
            for a column that is missing or is none of categories, cells that are missing, one class alone, a class or
            group that the training part lacks, an id that comes twice, and rows in two parts: each with its name, the
            number of rows, and the first one.
    """

    drawn_sizes: ClassVar[Mapping[str, float]] = {"holdout": 0.1, "test": 0.2}
    image_options: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        target_column: str,
        group_column: str | None = None,
        index_column: str | None = None,
        class_names: Sequence[str] | None = None,
        empty_texts: str = "error",
        overlap: str = "error",
        download: bool = False,
        tokenizer: str | None = None,
        num_tokens: int | None = None,
        max_length: int | None = None,
        image_size: int | None = None,
        resize: int | None = None,
        hold: str | None = None,
        unreadable: str | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if empty_texts not in _EMPTY_TEXTS:
            raise unknown_name("datamodule.empty_texts", empty_texts, _EMPTY_TEXTS)
        check_policy(overlap)
        # a column called 3 is a number on the command line
        self.target_column = str(target_column)
        group, index = (None if column is None else str(column) for column in (group_column, index_column))
        self.group_column = None if group == self.target_column else group
        self.index_column = index
        self.class_names = None if class_names is None else tuple(map(str, class_names))
        self.empty_texts = empty_texts
        self.overlap = overlap
        self.download = download
        given = {
            "tokenizer": tokenizer, "num_tokens": num_tokens, "max_length": max_length, "image_size": image_size,
            "resize": resize, "hold": hold, "unreadable": unreadable,
            "cache_dir": None if cache_dir is None else Path(cache_dir),
        }  # fmt: skip
        self.input_options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
        self.tokenization: Tokenization | None = None

    @property
    def other_columns(self) -> list[str]:
        """Columns in use that are no inputs."""
        named = (self.target_column, self.group_column, self.index_column)
        return list(dict.fromkeys(column for column in named if column is not None))

    @abstractmethod
    def rows(self) -> Rows:
        """The rows of all parts."""

    @abstractmethod
    def inputs(self, rows: Rows) -> tuple[Any, Tensor]:
        """The inputs of the readable ones of N rows, and (N,) bool, which these are."""

    def content(self, rows: Rows) -> Tensor:
        """(N,) int64, the same for rows with the same input."""
        return torch.tensor(rows.frame.groupby(list(rows.input_columns), dropna=False, sort=False).ngroup().to_numpy())

    def use(self, kind: str) -> None:
        """Take up the options for inputs of this ``kind``.

        Raises:
            ValueError: for an option that is given and is for another kind.
        """
        usable = {"text": _TEXT_OPTIONS, "image": self.image_options}.get(kind, ())
        for option, value in self.input_options.items():
            if option not in usable:
                raise ValueError(
                    f"datamodule.{option}={value} changes nothing for inputs of this kind ({kind}). Leave it out."
                )
        if kind != "text" and self.empty_texts != "error":
            raise ValueError(
                f"datamodule.empty_texts={self.empty_texts} changes nothing for inputs of this kind ({kind}). Leave it "
                "out."
            )
        if kind == "text":
            self.tokenization = Tokenization(**self.input_options, download=self.download)
        if kind == "image":
            self.input_options.setdefault("image_size", 32)
            self.preprocess = self.preprocess or Preprocess([0.5] * 3, [0.5] * 3)

    def read(self) -> RawData:
        """All rows that are not left out."""
        rows, content, notes = self._checked(self.rows())
        target = coded(rows, self.target_column, option="target_column")
        if len(target.names) < 2:
            raise ValueError(
                f"column {self.target_column!r} (datamodule.target_column) must have two values at least; the training "
                f"rows have {target.names[0]!r} alone."
            )
        group = None if self.group_column is None else coded(rows, self.group_column, option="group_column")
        input, is_readable = self.inputs(rows)  # noqa: A001  (the field's name in RawData)
        if not bool(is_readable.all()):
            notes += (_left_out(rows, ~is_readable.numpy(), "whose image cannot be read"),)
        return RawData(
            input=input,
            target=target.code[is_readable],
            class_names=self._class_names(target.names),
            parts=rows.taken(is_readable.numpy()).parts(),
            has_clean_targets=False,
            group=None if group is None else group.code[is_readable],
            num_groups=None if group is None else len(group.names),
            group_names=None if group is None else group.names,
            # different points often have the same few numbers and categories
            content=None if rows.kind == "features" else content[is_readable],
            place=torch.from_numpy(rows.frame.index.to_numpy(dtype=np.int64, copy=True))[is_readable],
            notes=notes,
        )

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with tokens in place of texts."""
        return raw if self.tokenization is None else with_tokens(raw, self.tokenization, train_source)

    def _checked(self, rows: Rows) -> tuple[Rows, Tensor, tuple[str, ...]]:
        """The rows that are not left out, their content, and a note for each reason why others are."""
        notes: list[str] = []
        if rows.kind == "text":
            is_empty = np.any([strings(rows.frame[column]).str.strip() == "" for column in rows.input_columns], axis=0)
            if is_empty.any() and self.empty_texts == "error":
                raise ValueError(
                    f"{counted(is_empty)} without text; the first is {rows.first(is_empty)}. Fill them in, or leave "
                    "them out: datamodule.empty_texts=skip."
                )
            if is_empty.any():
                notes.append(_left_out(rows, is_empty, "which lack a text"))
                rows = rows.taken(~is_empty)
        if self.index_column is not None:
            _check_index(rows, self.index_column)
        content = self.content(rows)
        parts = {"train": torch.from_numpy(np.flatnonzero(rows.is_train)), **rows.parts()}
        stays, overlap_notes = without_overlap(content, parts, policy=self.overlap, unit="row", name=rows.name)
        return rows.taken(stays.numpy()), content[stays], (*notes, *overlap_notes)

    def _class_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if self.class_names is None:
            return names
        if len(self.class_names) != len(names):
            raise ValueError(
                f"datamodule.class_names must name the {len(names)} classes in the order {', '.join(names)}; got "
                f"{len(self.class_names)} names."
            )
        return self.class_names


def coded(rows: Rows, column: str, *, option: str) -> Coded:
    """A column of categories as numbers, in the order of its values among the training rows.

    Args:
        rows: N rows.
        column: strings, booleans or whole numbers, such as 3, "3" and 3.0, which are the same.
        option: that names the column, for messages.

    Raises:
        ValueError: for missing values; numbers that are not whole; more different values than half the training rows;
            more than 100 different whole numbers with gaps between them, such as prices, that come fewer than five
            times on average; or a value that no training row has.
    """
    import pandas as pd

    values = rows.frame[column]
    is_missing = (strings(values) == "").to_numpy()
    if is_missing.any():
        raise ValueError(
            f"{counted(is_missing)} without a value in column {column!r} (datamodule.{option}); the first is "
            f"{rows.first(is_missing)}. Fill them in, or remove these rows."
        )
    numbers, found = pd.factorize(strings(values))
    fault = f"column {column!r} (datamodule.{option}) is not categorical"
    known = _comparable(found.tolist(), fault)
    is_in_train = np.isin(np.arange(len(found)), numbers[rows.is_train])
    classes = sorted({value for value, is_in in zip(known, is_in_train, strict=True) if is_in})
    num_train = int(rows.is_train.sum())
    if 2 * len(classes) > num_train or _is_measured(classes, num_train):
        raise ValueError(
            f"{fault}: it has {len(classes)} different values in {num_train} training rows. Name a column of classes."
        )
    place = {value: number for number, value in enumerate(classes)}
    code = np.array([place.get(value, -1) for value in known], dtype=np.int64)[numbers]
    is_unknown = code < 0
    if is_unknown.any():
        unknown = found[numbers[int(is_unknown.argmax())]]
        raise ValueError(
            f"column {column!r} (datamodule.{option}) has {counted(is_unknown)} with a value that no training row "
            f"has; the first is {rows.first(is_unknown)}, with {unknown!r}. Training rows have "
            f"{', '.join(map(str, classes))}."
        )
    names = rows.value_names.get(column)
    return Coded(torch.from_numpy(code), tuple(str(value) if names is None else names[int(value)] for value in classes))


def check_columns(wanted: Iterable[str], columns: Sequence[str], *, name: str) -> None:
    """Raise ValueError for the first of ``wanted`` that is not one of the ``columns`` of what is called ``name``."""
    for column in wanted:
        if column not in columns:
            raise unknown_name("column", column, columns, of=name)


def _comparable(cells: list[str], fault: str) -> list[Any]:
    """Different values as whole numbers if all of them are, else as they are."""
    wholes = [_WHOLE_NUMBER.fullmatch(cell) for cell in cells]
    if all(wholes):
        return [int(whole[1]) for whole in wholes if whole]
    if all(_DECIMAL_NUMBER.fullmatch(cell) for cell in cells):
        broken = next((cell for cell in cells if float(cell) % 1), None)
        if broken is not None:
            raise ValueError(f"{fault}: it holds broken numbers, such as {broken}. Name a column of classes.")
    return cells


def _is_measured(classes: Sequence[Any], num_train: int) -> bool:
    """Whether the different values of ``num_train`` rows, in order, look like amounts, not classes."""
    if not isinstance(classes[0], int) or classes[-1] - classes[0] + 1 == len(classes):
        return False
    return len(classes) > _MANY_NUMBERS and num_train < _FEW_ROWS * len(classes)


def _check_index(rows: Rows, column: str) -> None:
    """Raise ValueError unless every id in ``column`` comes once."""
    ids = strings(rows.frame[column])
    is_of_same_part = ids.to_frame().assign(part=rows.part).duplicated()
    for is_double, where in ((is_of_same_part, "the same part"), (ids.duplicated(), "another part")):
        mask = is_double.to_numpy()
        if mask.any():
            raise ValueError(
                f"column {column!r} (datamodule.index_column) must hold each id once: {counted(mask)} with an id that "
                f"{where} has before; the first is {rows.first(mask)}, with {ids[mask].iloc[0]!r}."
            )


def counted(is_meant: Mask) -> str:
    """How many rows ``is_meant`` (N,) names, such as "3 rows"."""
    count = int(is_meant.sum())
    return "1 row" if count == 1 else f"{count} rows"


def _left_out(rows: Rows, is_left_out: Mask, reason: str) -> str:
    return f"{counted(is_left_out)} of {len(rows)} left out, {reason}; the first is {rows.first(is_left_out)}."
