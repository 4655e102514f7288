"""Fingerprints of data sets, so that a table is never used with the wrong data."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_NUM_SAMPLED_INPUTS = 64
_CHECKSUMS: Any = WeakIdKeyDictionary()
"""Checksums of the rows of pools in memory, which are views of the same tensor for every part and every seed."""


class IndexedData(Protocol):
    """A map-style data set that yields (index, input, target, group) and knows its targets and groups."""

    target: Tensor
    group: Tensor

    def __len__(self) -> int:
        """N, the number of examples; example i has index i."""

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The index, input, target and group of one example."""


@dataclass(frozen=True)
class DataFingerprint:
    """Checksums of a data set: they change with its length, order, targets, groups and inputs.

    Args:
        length: N.
        target_checksum: SHA-256 of all targets in order.
        group_checksum: SHA-256 of all groups in order.
        input_checksum: SHA-256 of 64 evenly spaced inputs, with shape and dtype.
        all_inputs_checksum: SHA-256 of the checksums of all inputs; None if they are not in memory, and in what earlier
            versions wrote.
    """

    length: int
    target_checksum: str
    group_checksum: str
    input_checksum: str
    all_inputs_checksum: str | None = None

    @classmethod
    def of(cls, data: IndexedData) -> DataFingerprint:
        """The fingerprint of ``data``."""
        digest = hashlib.sha256()
        num_sampled = min(len(data), _NUM_SAMPLED_INPUTS)
        for position in torch.linspace(0, len(data) - 1, num_sampled, dtype=torch.float64).long().tolist():
            _, example_input, *_ = data[position]
            digest.update(f"{position} {example_input.dtype} {tuple(example_input.shape)}".encode())
            digest.update(example_input.contiguous().numpy().tobytes())
        pool, all_inputs = getattr(data, "pool", None), None
        if isinstance(pool, Tensor):
            rows = row_checksums(pool)[data.source.numpy()]  # type: ignore[attr-defined]  # an ExampleDataset
            all_inputs = hashlib.sha256(rows.tobytes()).hexdigest()
        return cls(len(data), _checksum(data.target), _checksum(data.group), digest.hexdigest(), all_inputs)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataFingerprint:
        """The fingerprint that ``to_dict`` has turned into ``values``."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: values[name] for name in names if name in values or name != "all_inputs_checksum"})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        return asdict(self)

    def differences(self, other: DataFingerprint) -> list[str]:
        """Differences from ``other``, as phrases for an error message; another length is the only one reported."""
        if self.length != other.length:
            return [f"it was built for {self.length} examples, the data has {other.length}"]
        names = ("target", "group", "input")
        differences = [
            f"the {name}s or their order differ"
            for name in names
            if getattr(self, f"{name}_checksum") != getattr(other, f"{name}_checksum")
        ]
        checksums = {self.all_inputs_checksum, other.all_inputs_checksum} - {None}
        if not differences and len(checksums) == 2:
            differences.append("some inputs differ")
        return differences


def row_checksums(rows: Tensor) -> NDArray[np.uint32]:
    """(P,) the CRC-32 of the bytes of each of the P rows.

    Computed once for every tensor; inputs are never changed in place.
    """
    checksums: NDArray[np.uint32] | None = _CHECKSUMS.get(rows)
    if checksums is None and not rows.numel():
        return np.zeros(len(rows), dtype=np.uint32)
    if checksums is None:
        array = rows.detach().cpu().contiguous().reshape(len(rows), -1).view(torch.uint8).numpy()
        checksums = np.fromiter(map(zlib.crc32, array), dtype=np.uint32, count=len(rows))
        _CHECKSUMS[rows] = checksums
    return checksums


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.long().contiguous().numpy().tobytes()).hexdigest()
