"""Images and arrays in the cells of a Hugging Face data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr.data.io.image_decoding import decoded_image
from reducr.data.own.rows import Rows, row_count

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

# rows read at a time
_BATCH_SIZE = 1000


def stored_images(data: Dataset, column: str) -> pd.Series[Any]:
    """Each image of a column as the bytes of its file, or as its path; None where there is no image."""
    from datasets import Image

    def cells() -> Iterator[bytes | str | None]:
        encoded = data.select_columns([column]).cast_column(column, Image(decode=False))
        for batch in encoded.iter(batch_size=_BATCH_SIZE):
            for cell in batch[column]:
                yield None if cell is None else cell["path"] if cell["bytes"] is None else cell["bytes"]

    return _objects(cells())


def stored_arrays(data: Dataset, column: str) -> pd.Series[Any]:
    """Each array of a column as its shape and its bytes as float32; None if it is missing or ragged."""
    batches = data.select_columns([column]).with_format("numpy").iter(batch_size=_BATCH_SIZE)
    return _objects(_stored_array(cell) for batch in batches for cell in batch[column])


def arrays(rows: Rows, cells: Sequence[tuple[tuple[int, ...], bytes] | None]) -> Tensor:
    """The stored arrays of N rows: (N, ...) float32.

    Raises:
        ValueError: for arrays of different shapes, or a number that is missing or not finite.
    """
    shape = next((cell[0] for cell in cells if cell is not None), ())
    has_other_shape = np.array([cell is None or cell[0] != shape for cell in cells])
    if has_other_shape.any():
        raise ValueError(
            f"`datamodule.input_column` must hold arrays of one shape; {row_count(has_other_shape)} with no array or "
            f"another shape than {shape}. The first is {rows.first_place(has_other_shape)}."
        )
    numbers = np.frombuffer(b"".join(cell[1] for cell in cells if cell is not None), dtype=np.float32)
    tensor = torch.from_numpy(numbers.reshape(len(cells), *shape).copy())
    is_nonfinite = ~tensor.flatten(1).isfinite().all(dim=1).numpy()
    if is_nonfinite.any():
        raise ValueError(
            f"`datamodule.input_column` must hold finite numbers; {row_count(is_nonfinite)} with a missing or infinite "
            f"number. The first is {rows.first_place(is_nonfinite)}."
        )
    return tensor


def images(cells: Sequence[bytes | str | None], *, image_size: int) -> tuple[Tensor, dict[int, str]]:
    """Decode N stored images in parallel.

    Returns:
        (N, 3, S, S) uint8, zeros where decoding fails; and the reason for each position where it fails.
    """
    pixels = np.zeros((len(cells), 3, image_size, image_size), dtype=np.uint8)
    faults = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for position, image in enumerate(threads.map(partial(_decoded, image_size=image_size), cells)):
            if isinstance(image, str):
                faults[position] = image
            else:
                pixels[position] = image
    return torch.from_numpy(pixels), faults


def _stored_array(cell: Any) -> tuple[tuple[int, ...], bytes] | None:
    try:
        array = np.asarray(cell, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    return array.shape, array.tobytes()


def _decoded(cell: bytes | str | None, *, image_size: int) -> NDArray[np.uint8] | str:
    """The image, or the reason why there is none."""
    if cell is None:
        return "there is no image"
    file: Any = BytesIO(cell) if isinstance(cell, bytes) else cell
    try:
        return decoded_image(file, image_size=image_size, resize=image_size)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged files
        return f"{type(error).__name__}: {error}"


def _objects(cells: Iterable[Any]) -> pd.Series[Any]:
    import pandas as pd

    return pd.Series(list(cells), dtype="object")
