"""Process many files in a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_CHUNK = 512
"""Files submitted to the threads at a time."""
_MIN_FILES_FOR_PROGRESS_BAR = 5000

Result = TypeVar("Result")


def map_files(function: Callable[[Path], Result], paths: Sequence[Path], *, verb: str) -> Iterator[Result]:
    """Yield ``function(path)`` of each file in order, computed with one thread for each core.

    Args:
        function: what to compute of a file.
        paths: the files.
        verb: names the work in the progress bar, which is shown for 5,000 files or more.
    """
    from tqdm import tqdm

    is_hidden = len(paths) < _MIN_FILES_FOR_PROGRESS_BAR or None  # None: shown on a terminal only
    progress_bar = tqdm(total=len(paths), desc=f"{verb} images", leave=False, disable=is_hidden)
    with progress_bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            yield from threads.map(function, chunk)
            progress_bar.update(len(chunk))
