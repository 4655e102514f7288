"""How far ahead of the training loop a batch sampler is read.

With worker processes a DataLoader asks its batch sampler for ``num_workers * prefetch_factor`` batches before it yields
the first, and for one more with every batch that it yields. So the number of requests tells how many batches have been
yielded, and it does so at any time, without a hook in the loop. ``accelerate`` reads one batch ahead in addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data.dataloader import _BaseDataLoaderIter

_PACKAGES = ("torch", "torchdata", "accelerate")


@dataclass
class Reader:
    """Whoever asks a batch sampler for batches.

    Args:
        num_ahead: requests before the first batch is yielded; None if requests do not tell what has been yielded.
        accelerated: the loader that ``accelerate`` has prepared; None for another one.
        keeps_workers: whether worker processes stay from one pass to the next.
        dataset: of the DataLoader; None for a loop that reads the indices by itself.
    """

    num_ahead: int | None = 0
    accelerated: Any = None
    keeps_workers: bool = False
    dataset: Any = None

    @classmethod
    def of(cls, frame: FrameType | None) -> Reader:
        """Return the reader whose request is in ``frame``, a frame of the call stack.

        Anything but a DataLoader is taken for a loop that asks for a batch when it needs it.
        """
        reader, is_first = cls(), True
        while frame is not None and _package(frame) in _PACKAGES:
            owner = frame.f_locals.get("self")
            if is_first and not isinstance(owner, _BaseDataLoaderIter):
                reader.num_ahead = None  # such as accelerate's BatchSamplerShard, which reads batches of all processes
            if is_first and isinstance(owner, _BaseDataLoaderIter) and owner._num_workers:
                workers: Any = owner
                reader.num_ahead = workers._num_workers * workers._prefetch_factor
                reader.keeps_workers = workers._persistent_workers
            if isinstance(owner, _BaseDataLoaderIter):
                reader.dataset = owner._dataset
            if hasattr(owner, "use_stateful_dataloader"):
                reader.accelerated = owner
            frame, is_first = frame.f_back, False
        return reader

    def num_yielded(self, num_requests: int) -> int | None:
        """Return how many batches the training loop has got after ``num_requests``; None if that is unknown."""
        if self.num_ahead is None:
            return None
        is_one_ahead = self.accelerated is not None and not self.accelerated.end_of_dataloader
        return max(0, num_requests - self.num_ahead - is_one_ahead)


def is_told_by_accelerate(frame: FrameType | None) -> bool:
    """Whether ``frame``, which calls ``set_epoch``, is the beginning of a pass over a loader of ``accelerate``.

    Such a loader counts passes from 0 again after a resume, so its count is no wish of the user.
    """
    caller = None if frame is None else frame.f_back
    return caller is not None and caller.f_code.co_name == "__iter__" and _package(caller) == "accelerate"


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]
