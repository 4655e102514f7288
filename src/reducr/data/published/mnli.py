"""MNLI: whether one sentence follows from another."""

from __future__ import annotations

import torch

from reducr.data.core.raw import RawData
from reducr.data.published.glue import GlueDataModule


class MNLI(GlueDataModule):
    """412,349 pairs of sentences: a premise that entails, contradicts or does not decide a hypothesis.

    Card:
        Source: Williams, Nangia & Bowman 2018 (arXiv 1704.05426), as in GLUE (arXiv 1804.07461):
            huggingface.co/datasets/nyu-mll/glue, or gluebenchmark.com.
        Licence: mostly that of the OANC; several Creative Commons licences for the fiction part.
        Sizes: 392,702 training pairs, 9,815 matched and 9,832 mismatched validation pairs, three classes of about a
            third; inputs are tokens, int32 (2, L).
        Splits: all N pairs of the three files in this order: the first ``floor(N / 2)`` train, the next
            ``floor(2 N / 5)`` hold out, and the rest test. That is 206,174, 164,939 and 41,236 pairs, as published. So
            the test part has the 19,647 pairs of the validation files, half of them from other genres, and 21,589 of
            the training file. A premise occurs up to three times in the training file and may be in several parts.
        Group: the class.
        Memory: 422 MB of tokens at 128 tokens per pair, memory-mapped with ``cache_dir``; 150 MB of text.

    Labels come from single annotators or majorities. Some are wrong; which ones is unknown.

    Source: splits of Bankes et al. 2024 (arXiv 2312.00486).
    """

    task = "mnli"
    class_names = ("entailment", "neutral", "contradiction")
    published_splits = ("train", "validation_matched", "validation_mismatched")
    columns = (("premise", "hypothesis", "label"), ("sentence1", "sentence2", "gold_label"))

    def read(self) -> RawData:
        """All labelled pairs."""
        texts, target, _, notes = self.read_splits()
        num_examples = len(texts)
        holdout_start = num_examples // 2
        test_start = holdout_start + 2 * num_examples // 5
        return RawData(
            input=texts,
            target=target,
            class_names=self.class_names,
            parts={"holdout": torch.arange(holdout_start, test_start), "test": torch.arange(test_start, num_examples)},
            has_clean_targets=False,
            notes=notes,
        )
