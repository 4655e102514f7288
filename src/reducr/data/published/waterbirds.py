"""Waterbirds, and other images with a table of their targets, groups and parts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reducr.data.core.overlap import check_policy
from reducr.data.core.raw import RawData
from reducr.data.io.download import fetch, unpack
from reducr.data.io.images import ImageDataModule

if TYPE_CHECKING:
    from pandas import DataFrame

_NAME = "waterbird_complete95_forest2water2"
_URL = f"https://nlp.stanford.edu/data/dro/{_NAME}.tar.gz"
_TABLE = "metadata.csv"
_PARTS = ("train", "holdout", "test")


class Waterbirds(ImageDataModule):
    """11,788 birds cut out and put before land or water, which in the training part nearly tells them apart.

    The table ``metadata.csv`` has a row for each image. Groups are the combinations of the values of ``group_columns``
    that occur, in the order of these values, the first column counting most: here ``group = 2 y + place``, and the rare
    groups are landbirds on water (1) and waterbirds on land (2). A note says which group is which.

    Card:
        Source: Sagawa, Koh, Hashimoto & Liang 2020 (arXiv 1911.08731), github.com/kohpangwei/group_DRO.
        Licence: none stated; birds of CUB-200-2011 and backgrounds of Places, whose terms hold (research only).
        Sizes: 4,795 training, 1,199 validation and 5,794 test images; 2 classes, 0.23 of the images waterbirds. Inputs
            are RGB, uint8 (3, 224, 224): the shorter side resized to 256 pixels, then the central square of 224.
        Splits: the published ones; validation is the holdout part.
        Group: class and background, 4 in all; 0.05 of either class's training images have the other one's background,
            half of its holdout and test images. With label noise, the group is still that of the clean class.
        Memory: 1.8 GB for all images with ``hold=memory``.

    Args:
        data_dir: the folder that holds ``metadata.csv`` (or ``metadata.csv.gz``) and the images, or a folder
            ``waterbird_complete95_forest2water2`` that does.
        download: whether to download them into ``data_dir`` if they are not there.
        target_column: the target; its values are numbered in their order.
        group_columns: what groups are made of.
        filename_column: the path of the image beside the table.
        split_column: 0 for the training, 1 for the holdout, 2 for the test part; a part without rows is drawn.
        class_names: (C,) in the order of the target's values; null for these values.
        overlap: what is done with rows of one part whose image another part names too: ``error``; ``drop``, which
            leaves them out of the training part, and those of the holdout part that test; or ``allow``.
        image_size: pixels of the central square.
        resize: pixels of the shorter side before it is cut out.
        options: of ``ImageDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if the table is missing; says where it was looked for and how to get it.
        ValueError: for columns that are not there, rows without a value, a part that is none, or names that do not fit.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None,
        download: bool = False,
        target_column: str = "y",
        group_columns: Sequence[str] = ("y", "place"),
        filename_column: str = "img_filename",
        split_column: str = "split",
        class_names: Sequence[str] | None = ("landbird", "waterbird"),
        overlap: str = "error",
        image_size: int = 224,
        resize: int | None = 256,
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, **options)
        if data_dir is None:
            raise ValueError(
                f"Waterbirds needs datamodule.data_dir=DIR, the folder that holds {_TABLE} and the images; with "
                "datamodule.download=true they are downloaded into it."
            )
        if isinstance(group_columns, str) or not group_columns:
            raise ValueError(
                f"datamodule.group_columns must be a list of columns, such as [y, place]; got {group_columns!r}."
            )
        check_policy(overlap)
        self.data_dir = Path(data_dir)
        self.overlap = overlap
        self.download = download
        self.target_column = target_column
        self.group_columns = list(group_columns)
        self.filename_column = filename_column
        self.split_column = split_column
        self.class_names = None if class_names is None else tuple(class_names)

    def read(self) -> RawData:
        """All images, in the order of the table's rows."""
        path = self._path()
        table = self._table(path)
        values, target = np.unique(table[self.target_column].to_numpy(), return_inverse=True)
        names = tuple(map(str, values)) if self.class_names is None else self.class_names
        if len(names) != len(values):
            raise ValueError(
                f"datamodule.class_names must name each of the {len(values)} values of column {self.target_column!r} "
                f"({', '.join(map(str, values))}), or be null for these; got {', '.join(names)}."
            )
        group, described = _combinations(table, self.group_columns)
        split = torch.tensor(table[self.split_column].to_numpy(dtype=np.int64))
        positions = {part: torch.nonzero(split == place).flatten() for place, part in enumerate(_PARTS)}
        return self.image_data(
            [path.parent / str(name) for name in table[self.filename_column]],
            target=torch.from_numpy(target),
            parts={part: places for part, places in positions.items() if len(places)},
            group=group,
            content=torch.from_numpy(np.unique(table[self.filename_column].astype("str"), return_inverse=True)[1]),
            overlap=self.overlap,
            num_groups=len(described),
            group_names=tuple(described),
            class_names=names,
            notes=(f"groups: {'; '.join(f'{number} is {text}' for number, text in enumerate(described))}.",),
        )

    def _path(self) -> Path:
        """The table, downloaded with the images if need be."""
        folders = [self.data_dir, self.data_dir / _NAME]
        paths = [folder / name for folder in folders for name in (_TABLE, f"{_TABLE}.gz")]
        if not any(path.is_file() for path in paths) and self.download:
            archive = self.data_dir / f"{_NAME}.tar.gz"
            fetch(_URL, archive)
            unpack(archive, self.data_dir)
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{_TABLE} (or {_TABLE}.gz) is missing; looked in {' and '.join(map(str, folders))}. Give "
            f"datamodule.data_dir=DIR, the folder that holds it and the images; to get Waterbirds, unpack {_URL} into "
            "DIR, or let datamodule.download=true do that."
        )

    def _table(self, path: Path) -> DataFrame:
        """The table, with a value in every column that is used."""
        import pandas as pd

        try:
            table = pd.read_csv(path)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is no table, or is damaged ({error}). Get the file again.") from error
        used = {
            "filename_column": [self.filename_column],
            "target_column": [self.target_column],
            "split_column": [self.split_column],
            "group_columns": self.group_columns,
        }
        for option, columns in used.items():
            for column in columns:
                if column not in table.columns:
                    raise ValueError(
                        f"{path} has no column {column!r}, which datamodule.{option} names; it has "
                        f"{', '.join(map(repr, table.columns))}."
                    )
                _check_rows(path, ~table[column].isna().to_numpy(), f"column {column!r} is empty")
        parts = ", ".join(f"{place} ({part})" for place, part in enumerate(_PARTS))
        is_part = table[self.split_column].isin(range(len(_PARTS))).to_numpy()
        _check_rows(path, is_part, f"column {self.split_column!r} must hold {parts}")
        return table


def _combinations(table: DataFrame, columns: list[str]) -> tuple[Tensor, list[str]]:
    """(N,) int64, which of the combinations of these columns' values each row has, and what each of them is."""
    group = torch.tensor(table.groupby(columns).ngroup().to_numpy())
    combinations = table[columns].drop_duplicates().sort_values(columns).itertuples(index=False, name=None)
    described = [", ".join(f"{name}={value}" for name, value in zip(columns, row, strict=True)) for row in combinations]
    return group, described


def _check_rows(path: Path, is_right: np.ndarray, fault: str) -> None:
    wrong = np.flatnonzero(~is_right)
    if len(wrong):
        # the first row stands in the second line
        raise ValueError(f"{path}, line {wrong[0] + 2}: {fault} ({len(wrong)} such in all).")
