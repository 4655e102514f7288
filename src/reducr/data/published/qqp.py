"""QQP: do two questions ask the same."""

from __future__ import annotations

import torch

from reducr.data.core.raw import RawData
from reducr.data.published.glue import GlueDataModule


class QQP(GlueDataModule):
    """404,276 pairs of questions, which ask the same (class 1) or do not (class 0).

    Card:
        Source: Quora Question Pairs, as in GLUE (arXiv 1804.07461): huggingface.co/datasets/nyu-mll/glue, or
            gluebenchmark.com.
        Licence: Quora's terms of service; not for commercial use.
        Sizes: 363,846 training and 40,430 validation pairs, 0.369 and 0.368 of class 1; inputs are tokens, int32
            (2, L). The labels of GLUE's test pairs are not published.
        Splits: of the training pairs the even rows train and the odd ones hold out, 181,923 each; the validation pairs
            test. What is left of the first two is for ``imbalance`` to say, and is 148 k and 67 k with the values in
            ``configs/datamodule/qqp.yaml``, see below.
        Group: the class.
        Memory: 414 MB of tokens at 128 tokens a pair, memory-mapped with ``cache_dir``; 120 MB of text.

    Published are class 1 cut to a share of 0.22 in the training and the holdout part, the test part left as it is, and
    148 k, 67 k and 40 k pairs. A half of the training pairs has 114.7 k of class 0 and 67.2 k of class 1. With every
    second pair of class 1 it has 114.7 k + 33.6 k = 148.3 k, of which 0.226 are of class 1: the training part. (Both
    parts together are 215 k. All 363,846 pairs, thinned out without being halved, would be 294 k with a share of 0.22,
    and 259 k with 0.22 of class 1 kept.) The holdout part with that share and 67.2 k pairs has 52.0 k + 15.2 k, which
    are 0.453 and 0.226 of its classes. Its size is also that of a balanced one with the same 33.6 k of class 1,
    2 x 33.6 k = 67.2 k, 0.293 and 0.5 of its classes, which may have been meant.

    Labels are of human annotators, and at times wrong: which ones is not known.

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
