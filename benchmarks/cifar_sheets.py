"""Convert CIFAR-10 from this repository's WebP sheets to the published Python batches.

    python -m benchmarks.cifar_sheets FROM TO

FROM is the folder with data_batch_1.webp, ..., test_batch.webp and labels.npz, or the data folder above it. TO receives
cifar-10-batches-py with the same images, labels and file names in the same order, and a copy of
cifar_n/CIFAR-10_human.pt if the data folder has it. Then `datamodule.data_dir=TO` reads them. The benchmarks convert
sheets themselves.

A sheet is one lossless picture of 10,000 images of 32 x 32 pixels, filled row by row.
"""

from __future__ import annotations

import argparse
import atexit
import pickle
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reducr.data.published.cifar_files import naming_file, read_npz

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_LABELS = "labels.npz"
_HUMAN_LABELS = Path("cifar_n", "CIFAR-10_human.pt")
_SIDE = 32


def convert(source: Path, target: Path) -> Path:
    """Write the published batches of the sheets in ``source``.

    Args:
        source: the folder with the sheets, or the data folder with ``cifar10`` and ``cifar_n`` in it.
        target: folder to write into; it is created.

    Returns:
        ``target``, the ``data_dir`` to read from.

    Raises:
        FileNotFoundError: if ``source`` lacks a file.
        ValueError: if a file is damaged, or there are not as many labels as images.
    """
    sheets = _sheets_folder(source)
    names = [*(f"{name}.webp" for name in BATCHES), _LABELS]
    missing = names if sheets is None else [name for name in names if not (sheets / name).is_file()]
    if sheets is None or missing:
        raise FileNotFoundError(f"{sheets or source} lacks {', '.join(missing)}. Point FROM at the folder of sheets.")
    with naming_file(sheets / _LABELS):
        contents = read_npz(sheets / _LABELS)
    labels, filenames = (
        [*contents[f"train_{column}"].tolist(), *contents[f"test_{column}"].tolist()]
        for column in ("label", "filename")
    )
    pixels = [sheet_images(sheets / f"{name}.webp") for name in BATCHES]
    stops = np.cumsum([len(rows) for rows in pixels]).tolist()
    if stops[-1] != len(labels):
        raise ValueError(f"{sheets / _LABELS} has {len(labels)} labels for {stops[-1]} images. Get the files again.")
    folder = target / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, rows, stop) in enumerate(zip(BATCHES, pixels, stops, strict=True), start=1):
        part = slice(stop - len(rows), stop)
        title = "testing batch 1 of 1" if name == "test_batch" else f"training batch {number} of {len(BATCHES) - 1}"
        batch = {"batch_label": title, "labels": labels[part], "data": rows}
        _write(folder / name, batch | {"filenames": [name.decode() for name in filenames[part]]})
    class_names = [name.decode() for name in contents["class_names"].tolist()]
    meta = {"num_cases_per_batch": len(pixels[0]), "label_names": class_names, "num_vis": pixels[0].shape[1]}
    _write(folder / "batches.meta", meta)
    human_labels = sheets.parent / _HUMAN_LABELS
    if human_labels.is_file():
        (target / _HUMAN_LABELS).parent.mkdir(exist_ok=True)
        shutil.copyfile(human_labels, target / _HUMAN_LABELS)
    return target


def sheet_images(path: Path) -> np.ndarray:
    """The images of a sheet: (N, 3072) uint8, each with its red, then its green, then its blue pixels."""
    with naming_file(path), Image.open(path) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    grid = sheet.reshape(sheet.shape[0] // _SIDE, _SIDE, sheet.shape[1] // _SIDE, _SIDE, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3 * _SIDE**2)


def data_dir_for(experiment: str, data_dir: Path) -> Path:
    """The ``datamodule.data_dir`` of an experiment: ``data_dir``, or its converted sheets for CIFAR-10."""
    return _converted(data_dir) if experiment.startswith("cifar10") else data_dir


@cache
def _converted(data_dir: Path) -> Path:
    """``data_dir`` itself if it has no sheets; else a folder of batches that is removed when the process ends."""
    if _sheets_folder(data_dir) is None or (data_dir / "cifar-10-batches-py").is_dir():
        return data_dir
    folder = Path(tempfile.mkdtemp(prefix="cifar-10-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return convert(data_dir, folder)


def _sheets_folder(data_dir: Path) -> Path | None:
    folders = (data_dir / "cifar10", data_dir)
    return next((folder for folder in folders if (folder / f"{BATCHES[0]}.webp").is_file()), None)


def _write(path: Path, contents: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(contents, protocol=4))


def main(arguments: list[str] | None = None) -> None:
    """Convert one folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar_sheets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="FROM", help="folder with the sheets")
    parser.add_argument("target", type=Path, metavar="TO", help="folder for cifar-10-batches-py")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.target)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"CIFAR-10 is in {options.target}. Read it with `datamodule.data_dir={options.target}`.")


if __name__ == "__main__":
    main()
