"""Waterbirds, and other image sets with a table of targets, groups and parts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import check_regular
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
    """11,788 images of birds on land or water backgrounds, which nearly predict the class in the training part.

    The table ``metadata.csv`` has one row per image. Groups are the combinations of values of ``group_columns`` that
    occur, sorted with the first column as the most significant: here ``group = 2 y + place``. The rare groups are
    landbirds on water (1) and waterbirds on land (2). A note lists the groups.

    Card:
        Source: Sagawa, Koh, Hashimoto & Liang 2020 (arXiv 1911.08731), github.com/kohpangwei/group_DRO.
        Licence: none stated; the terms of CUB-200-2011 (birds) and Places (backgrounds) apply (research only).
        Sizes: 4,795 training, 1,199 validation and 5,794 test images; 2 classes, 0.23 of the images are waterbirds.
            Inputs are RGB, uint8 (3, 224, 224): the central square of 224 pixels after the shorter side is resized to
            256.
        Splits: the published ones; validation is the holdout part.
        Group: class and background, 4 in all. 0.05 of the training images of each class have the other background, and
            half of its holdout and test images. Label noise does not change the group.
        Memory: 1.8 GB for all images with ``hold=memory``.

    Args:
        data_dir: folder with ``metadata.csv`` (or ``metadata.csv.gz``) and the images, or with a folder
            ``waterbird_complete95_forest2water2`` that contains these.
        download: whether to download the data into ``data_dir`` if it is missing.
        target_column: column of the target; classes are its sorted values.
        group_columns: columns whose combinations are the groups.
        filename_column: column of image paths, relative to the table.
        split_column: column of parts: 0 is training, 1 holdout, 2 test. A part without rows is drawn.
        class_names: (C,) names in the order of the classes; null for the values themselves.
        overlap: policy for rows of one part whose image another part has too: ``error``; ``drop``, which drops them
            from the training part, and test rows from the holdout part; or ``allow``.
        options: of ``ImageDataModule``, with ``image_size=224`` and ``resize=256`` by default, and ``DataModule``.

    Raises:
        FileNotFoundError: if the table is missing.
        ValueError: for missing columns, empty cells, an unknown part, or a wrong number of class names.
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
        **options: Any,
    ) -> None:
        super().__init__(**{"image_size": 224, "resize": 256, **options})
        if data_dir is None:
            raise ValueError(
                f"Waterbirds needs `datamodule.data_dir=DIR`, the folder that contains {_TABLE} and the images. Add "
                "`datamodule.download=true` to download them into DIR."
            )
        if isinstance(group_columns, str) or not group_columns:
            raise ValueError(
                f"`datamodule.group_columns` must be a list of columns, such as [y, place]; got {group_columns!r}."
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
        """All images, in the order of the table."""
        path = self._path()
        table = self._table(path)
        values, target = np.unique(table[self.target_column].to_numpy(), return_inverse=True)
        names = tuple(map(str, values)) if self.class_names is None else self.class_names
        if len(names) != len(values):
            raise ValueError(
                f"`datamodule.class_names` must name the {len(values)} values of column {self.target_column!r} "
                f"({', '.join(map(str, values))}), or be null to use these; got {', '.join(names)}."
            )
        group, group_names = _groups(table, self.group_columns)
        split = torch.tensor(table[self.split_column].to_numpy(dtype=np.int64))
        positions = {part: torch.nonzero(split == place).flatten() for place, part in enumerate(_PARTS)}
        return self.image_data(
            [path.parent / str(name) for name in table[self.filename_column]],
            target=torch.from_numpy(target),
            parts={part: places for part, places in positions.items() if len(places)},
            group=group,
            content=torch.from_numpy(np.unique(table[self.filename_column].astype("str"), return_inverse=True)[1]),
            overlap=self.overlap,
            num_groups=len(group_names),
            group_names=tuple(group_names),
            class_names=names,
            notes=(f"Groups: {'; '.join(f'{number} is {name}' for number, name in enumerate(group_names))}.",),
        )

    def _path(self) -> Path:
        """The path of the table, downloaded with the images if allowed."""
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
            f"There is no {_TABLE} (or .gz) in {' or '.join(map(str, folders))}. Set `datamodule.data_dir=DIR`, the "
            "folder that contains it and the images. To get Waterbirds, set `datamodule.download=true`, or unpack "
            f"{_URL} into DIR."
        )

    def _table(self, path: Path) -> DataFrame:
        """The table, checked to have a value in every column in use."""
        import pandas as pd

        try:
            check_regular(path)
            table = pd.read_csv(path)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or not a table ({error}). Get the file again.") from error
        columns_of_option = {
            "filename_column": [self.filename_column],
            "target_column": [self.target_column],
            "split_column": [self.split_column],
            "group_columns": self.group_columns,
        }
        for option, columns in columns_of_option.items():
            for column in columns:
                if column not in table.columns:
                    raise ValueError(
                        f"{path} has no column {column!r} (`datamodule.{option}`); it has "
                        f"{', '.join(map(repr, table.columns))}."
                    )
                _check_rows(path, ~table[column].isna().to_numpy(), f"column {column!r} is empty")
        parts = ", ".join(f"{place} ({part})" for place, part in enumerate(_PARTS))
        is_known = table[self.split_column].isin(range(len(_PARTS))).to_numpy()
        _check_rows(path, is_known, f"column {self.split_column!r} must be {parts}")
        return table


def _groups(table: DataFrame, columns: list[str]) -> tuple[Tensor, list[str]]:
    """(N,) int64 group of each row, one group per combination of values in ``columns``; and the groups' names."""
    group = torch.tensor(table.groupby(columns).ngroup().to_numpy())
    combinations = table[columns].drop_duplicates().sort_values(columns).itertuples(index=False, name=None)
    names = [", ".join(f"{name}={value}" for name, value in zip(columns, row, strict=True)) for row in combinations]
    return group, names


def _check_rows(path: Path, is_valid: np.ndarray, fault: str) -> None:
    """Raise ValueError with ``fault`` and the line of the first row that is not valid."""
    rows = np.flatnonzero(~is_valid)
    if len(rows):
        # line 1 is the header
        raise ValueError(f"{path}, line {rows[0] + 2}: {fault} ({len(rows)} such in all).")
