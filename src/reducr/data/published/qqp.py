"""QQP: whether two questions ask the same."""

from __future__ import annotations

import torch

from reducr.data.core.raw import RawData
from reducr.data.published.glue import GlueDataModule


class QQP(GlueDataModule):
    """404,276 pairs of questions, which ask the same (class 1) or do not (class 0).

    Card:
        Source: Quora Question Pairs, as in GLUE (arXiv 1804.07461): huggingface.co/datasets/nyu-mll/glue, or
            gluebenchmark.com.
        Licence: Quora's terms of service; no commercial use.
        Sizes: 363,846 training and 40,430 validation pairs, 0.369 and 0.368 of class 1; inputs are tokens, int32
            (2, L). The labels of GLUE's test pairs are not published.
        Splits: even rows of the training pairs train and odd rows hold out, 181,923 each; the validation pairs test.
            ``imbalance`` thins the first two, to 148 k and 67 k pairs with ``configs/datamodule/qqp.yaml`` (see below).
        Group: the class.
        Memory: 414 MB of tokens at 128 tokens per pair, memory-mapped with ``cache_dir``; 120 MB of text.

    The paper cuts class 1 to a share of 0.22 in the training and holdout parts, leaves the test part as it is, and
    reports 148 k, 67 k and 40 k pairs. The sizes in the configuration follow from these numbers:

    - Half of the training pairs are 114.7 k of class 0 and 67.2 k of class 1. The training part keeps every second pair
      of class 1: 114.7 k + 33.6 k = 148.3 k, with a share of 0.226.
    - The holdout part has that share at 67.2 k pairs, 52.0 k + 15.2 k: 0.453 and 0.226 of its classes. A balanced part
      with 33.6 k pairs of class 1 (0.293 and 0.5 of its classes) would have the same size and may have been meant.
    - Thinning all 363,846 pairs without halving them does not fit: it would leave 294 k with a share of 0.22, or 259 k
      with 0.22 of class 1 kept, not 215 k.

    Labels come from human annotators. Some are wrong; which ones is unknown.

    Source: sizes of Bankes et al. 2024 (arXiv 2312.00486).
    """

    task = "qqp"
    class_names = ("not_duplicate", "duplicate")
    published_splits = ("train", "validation")
    columns = (("question1", "question2", "label"), ("question1", "question2", "is_duplicate"))

    def read(self) -> RawData:
        """All labelled pairs."""
        texts, target, (num_train, _), notes = self.read_splits()
        return RawData(
            input=texts,
            target=target,
            class_names=self.class_names,
            parts={"holdout": torch.arange(1, num_train, 2), "test": torch.arange(num_train, len(texts))},
            has_clean_targets=False,
            notes=notes,
        )
