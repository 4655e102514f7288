"""What a data set looks like in a few checksums, so that a table is never matched to the wrong one."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

_NUM_SAMPLED_INPUTS = 64


class IndexedData(Protocol):
    """A map-style data set that yields (index, input, target, group) and knows its targets and groups."""

    target: Tensor
    group: Tensor

    def __len__(self) -> int:
        """N, the number of points; point i has index i."""

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One point."""


@dataclass(frozen=True)
class DataFingerprint:
    """Checksums of a data set that change with its length, its labels, its order and its inputs.

    Args:
        length: N.
        target_checksum: SHA-256 of all targets in order.
        group_checksum: SHA-256 of all groups in order.
        input_checksum: SHA-256 of 64 inputs at even spacing, with shape and dtype.
    """

    length: int
    target_checksum: str
    group_checksum: str
    input_checksum: str

    @classmethod
    def of(cls, data: IndexedData) -> DataFingerprint:
        """The fingerprint of ``data``."""
        inputs = hashlib.sha256()
        num_sampled = min(len(data), _NUM_SAMPLED_INPUTS)
        for position in torch.linspace(0, len(data) - 1, num_sampled, dtype=torch.float64).long().tolist():
            point = data[position][1]
            inputs.update(f"{position} {point.dtype} {tuple(point.shape)}".encode())
            inputs.update(point.contiguous().numpy().tobytes())
        return cls(len(data), _checksum(data.target), _checksum(data.group), inputs.hexdigest())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataFingerprint:
        """Back from ``to_dict``."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)

    def differences(self, other: DataFingerprint) -> list[str]:
        """What differs from ``other``, one sentence each; the most telling first."""
        if self.length != other.length:
            return [f"it was built for {self.length} points, the data has {other.length}"]
        found = []
        if self.target_checksum != other.target_checksum:
            found.append("the targets, or their order, are not those it was built for")
        if self.group_checksum != other.group_checksum:
            found.append("the groups, or their order, are not those it was built for")
        if self.input_checksum != other.input_checksum:
            found.append("the inputs, or their order, are not those it was built for")
        return found


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.long().contiguous().numpy().tobytes()).hexdigest()
