"""Base of the data sets whose examples are rows of the user's tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from reducr._internal.names import unknown_name
from reducr.data.core.module import DataModule
from reducr.data.core.overlap import check_policy, without_overlap
from reducr.data.core.raw import RawData
from reducr.data.core.transforms import Preprocess
from reducr.data.io.text import Tokenization, with_tokens
from reducr.data.own.categories import Categories
from reducr.data.own.features import strings
from reducr.data.own.rows import Rows, row_count

_EMPTY_TEXTS = ("error", "skip")
_TEXT_OPTIONS = ("tokenizer", "num_tokens", "max_length", "cache_dir")
Options = TypeVar("Options")


@dataclass(frozen=True)
class InputOptions:
    """Options of texts and images. None leaves an option at its default.

    Args:
        tokenizer: of texts, see ``Tokenization``.
        num_tokens: of texts, see ``Tokenization``.
        max_length: of texts, see ``Tokenization``.
        image_size: of images, see ``read_images``; 32 by default.
        resize: of images, see ``read_images``.
        hold: of images, see ``read_images``.
        unreadable: of images, see ``read_images``.
        cache_dir: of texts or images.
    """

    tokenizer: str | None = None
    num_tokens: int | None = None
    max_length: int | None = None
    image_size: int | None = None
    resize: int | None = None
    hold: str | None = None
    unreadable: str | None = None
    cache_dir: str | Path | None = None

    def values(self) -> dict[str, Any]:
        """The options that are set."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        if self.cache_dir is not None:
            values["cache_dir"] = Path(self.cache_dir)
        return {name: value for name, value in values.items() if value is not None}


class ColumnDataModule(DataModule):
    """A data set of table rows with the target in one column.

    Args:
        target_column: strings, booleans or whole numbers to predict. The classes are its different values in the
            training part: whole numbers in numerical order, all others in alphabetical order.
        group_column: the groups, likewise; None if the groups are the classes.
        index_column: unique ids of the examples; None if there are none.
        class_names: names in the order of the classes; None for the values themselves.
        empty_texts: ``error``, or ``skip`` to skip rows without text.
        overlap: policy for rows of one given part that share their input, whatever the target, with another part:
            ``error``; ``drop``, which drops them from the training part, and test rows from the holdout part; or
            ``allow``.
        download: whether to download from the Hugging Face hub.
        options: fields of ``InputOptions``, and options of ``DataModule``. For images, ``preprocess`` scales pixels to
            [-1, 1] by default.

    Raises:
        ValueError: for an option that is unknown, out of range or not for this kind of input. In ``read``: for a column
            that is missing or not categorical, missing cells, a single class, a class or group without training rows,
            repeated ids, or rows in two parts.
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
        **options: Any,
    ) -> None:
        self.input_options = pop_options(InputOptions, options).values()
        super().__init__(**options)
        if empty_texts not in _EMPTY_TEXTS:
            raise unknown_name("datamodule.empty_texts", empty_texts, _EMPTY_TEXTS)
        check_policy(overlap)
        # the command line turns a column called "3" into a number
        self.target_column = str(target_column)
        group, index = (None if column is None else str(column) for column in (group_column, index_column))
        self.group_column = None if group == self.target_column else group
        self.index_column = index
        self.class_names = None if class_names is None else tuple(map(str, class_names))
        self.empty_texts = empty_texts
        self.overlap = overlap
        self.download = download
        self.tokenization: Tokenization | None = None

    @property
    def other_columns(self) -> list[str]:
        """Target, group and index column."""
        columns = (self.target_column, self.group_column, self.index_column)
        return list(dict.fromkeys(column for column in columns if column is not None))

    @abstractmethod
    def rows(self) -> Rows:
        """The rows of all parts."""

    @abstractmethod
    def inputs(self, rows: Rows) -> tuple[Any, Tensor]:
        """The inputs of those of the N rows that can be read, and (N,) bool, which rows these are."""

    def content(self, rows: Rows) -> Tensor:
        """(N,) int64, equal for rows with the same input."""
        return torch.tensor(rows.frame.groupby(list(rows.input_columns), dropna=False, sort=False).ngroup().to_numpy())

    def set_input_kind(self, kind: str) -> None:
        """Check and apply the options for inputs of this ``kind``.

        Raises:
            ValueError: for an option of another kind.
        """
        usable = {"text": _TEXT_OPTIONS, "image": self.image_options}.get(kind, ())
        unused = {option: value for option, value in self.input_options.items() if option not in usable}
        if kind != "text" and self.empty_texts != "error":
            unused["empty_texts"] = self.empty_texts
        for option, value in unused.items():
            raise ValueError(f"`datamodule.{option}={value}` has no effect on inputs of kind {kind!r}. Leave it out.")
        if kind == "text":
            self.tokenization = Tokenization(**self.input_options, download=self.download)
        if kind == "image":
            self.input_options.setdefault("image_size", 32)
            self.preprocess = self.preprocess or Preprocess([0.5] * 3, [0.5] * 3)

    def read(self) -> RawData:
        """All rows that are not skipped."""
        rows, content, notes = self._usable(self.rows())
        target = Categories.of(rows, self.target_column, option="target_column")
        if len(target.names) < 2:
            raise ValueError(
                f"Column {self.target_column!r} (`datamodule.target_column`) must have at least two values; all "
                f"training rows have {target.names[0]!r}."
            )
        group = None if self.group_column is None else Categories.of(rows, self.group_column, option="group_column")
        input, is_readable = self.inputs(rows)  # noqa: A001  (the field's name in RawData)
        if not bool(is_readable.all()):
            notes += (rows.skipped_note(~is_readable.numpy(), "whose image cannot be read"),)
        return RawData(
            input=input,
            target=target.code[is_readable],
            class_names=self._class_names(target.names),
            parts=rows.where(is_readable.numpy()).parts(),
            has_clean_targets=False,
            group=None if group is None else group.code[is_readable],
            num_groups=None if group is None else len(group.names),
            group_names=None if group is None else group.names,
            # different examples often have the same few numbers and categories
            content=None if rows.kind == "features" else content[is_readable],
            place=torch.from_numpy(rows.frame.index.to_numpy(dtype=np.int64, copy=True))[is_readable],
            notes=notes,
        )

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with texts replaced by tokens."""
        return raw if self.tokenization is None else with_tokens(raw, self.tokenization, train_source)

    def _usable(self, rows: Rows) -> tuple[Rows, Tensor, tuple[str, ...]]:
        """The rows that are not skipped, their content, and a note for each reason to skip rows."""
        notes: list[str] = []
        if rows.kind == "text":
            is_empty = np.any([strings(rows.frame[column]).str.strip() == "" for column in rows.input_columns], axis=0)
            if is_empty.any() and self.empty_texts == "error":
                raise ValueError(
                    f"{row_count(is_empty)} without text; the first is {rows.first_place(is_empty)}. Fill them in, or "
                    "skip them with `datamodule.empty_texts=skip`."
                )
            if is_empty.any():
                notes.append(rows.skipped_note(is_empty, "without text"))
                rows = rows.where(~is_empty)
        if self.index_column is not None:
            _check_index(rows, self.index_column)
        content = self.content(rows)
        parts = {"train": torch.from_numpy(np.flatnonzero(rows.is_train)), **rows.parts()}
        is_kept, overlap_notes = without_overlap(content, parts, policy=self.overlap, unit="row", name=rows.place)
        return rows.where(is_kept.numpy()), content[is_kept], (*notes, *overlap_notes)

    def _class_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if self.class_names is None:
            return names
        if len(self.class_names) != len(names):
            raise ValueError(
                f"`datamodule.class_names` must have one name for each of the {len(names)} classes "
                f"({', '.join(names)}); got {len(self.class_names)}."
            )
        return self.class_names


def pop_options(kind: type[Options], options: dict[str, Any]) -> Options:
    """Build the dataclass ``kind`` from its fields in ``options``, which are removed from there."""
    return kind(**{option.name: options.pop(option.name) for option in fields(kind) if option.name in options})  # type: ignore[arg-type]


def _check_index(rows: Rows, column: str) -> None:
    """Raise ValueError if an id in ``column`` occurs more than once."""
    ids = strings(rows.frame[column])
    is_repeated_in_part = ids.to_frame().assign(part=rows.part).duplicated()
    for is_repeated, where in ((is_repeated_in_part, "the same part"), (ids.duplicated(), "another part")):
        mask = is_repeated.to_numpy()
        if mask.any():
            raise ValueError(
                f"Column {column!r} (`datamodule.index_column`) must hold unique ids. It repeats ids of {where} in "
                f"{row_count(mask)}; the first is {rows.first_place(mask)}, with {ids[mask].iloc[0]!r}."
            )
