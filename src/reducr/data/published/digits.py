"""The handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import torch

from reducr.data.core.module import DataModule
from reducr.data.core.raw import RawData


class Digits(DataModule):
    """1,797 scans of handwritten digits, shipped with scikit-learn.

    Card:
        Source: E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
            (its test part).
        Licence: CC BY 4.0.
        Sizes: 1,797 grey images of 8 x 8, 10 classes of 174 to 183; inputs are (64,) floats in [0, 1].
        Splits: none published; all parts are drawn by seed, stratified and disjoint.
        Group: the digit.
        Memory: under 1 MB.
    """

    def read(self) -> RawData:
        """All 1,797 digits."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return RawData(
            input=torch.tensor(bunch.data / 16.0, dtype=torch.float32),
            target=torch.tensor(bunch.target, dtype=torch.int64),
            class_names=tuple(str(digit) for digit in range(10)),
            image_shape=(8, 8),
        )
