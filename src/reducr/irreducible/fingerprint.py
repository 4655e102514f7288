"""Fingerprints of data sets, so that a table is never used with the wrong data."""

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
    """

    length: int
    target_checksum: str
    group_checksum: str
    input_checksum: str

    @classmethod
    def of(cls, data: IndexedData) -> DataFingerprint:
        """The fingerprint of ``data``."""
        digest = hashlib.sha256()
        num_sampled = min(len(data), _NUM_SAMPLED_INPUTS)
        for position in torch.linspace(0, len(data) - 1, num_sampled, dtype=torch.float64).long().tolist():
            _, example_input, *_ = data[position]
            digest.update(f"{position} {example_input.dtype} {tuple(example_input.shape)}".encode())
            digest.update(example_input.contiguous().numpy().tobytes())
        return cls(len(data), _checksum(data.target), _checksum(data.group), digest.hexdigest())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataFingerprint:
        """The fingerprint that ``to_dict`` has turned into ``values``."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a manifest."""
        return asdict(self)

    def differences(self, other: DataFingerprint) -> list[str]:
        """Differences from ``other``, as phrases for an error message; another length is the only one reported."""
        if self.length != other.length:
            return [f"it was built for {self.length} examples, the data has {other.length}"]
        names = ("target", "group", "input")
        return [
            f"the {name}s or their order differ"
            for name in names
            if getattr(self, f"{name}_checksum") != getattr(other, f"{name}_checksum")
        ]


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.long().contiguous().numpy().tobytes()).hexdigest()
