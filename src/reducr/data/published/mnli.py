"""MNLI: does one sentence follow from another."""

from __future__ import annotations

import torch

from reducr.data.core.raw import RawData
from reducr.data.published.glue import GlueDataModule


class MNLI(GlueDataModule):
    """412,349 pairs of a premise and a hypothesis, which it entails, contradicts or leaves open.

    Card:
        Source: Williams, Nangia & Bowman 2018 (arXiv 1704.05426), as in GLUE (arXiv 1804.07461):
            huggingface.co/datasets/nyu-mll/glue, or gluebenchmark.com.
        Licence: mostly the terms of the OANC; the fiction part under several Creative Commons licences.
        Sizes: 392,702 training pairs, 9,815 matched and 9,832 mismatched validation pairs, three classes of about a
            third; inputs are tokens, int32 (2, L).
        Splits: the three files joined in this order, N pairs; the first ``floor(N / 2)`` train, the next
            ``floor(2 N / 5)`` hold out, the rest tests: 206,174, 164,939 and 41,236, as published. So 19,647 test pairs
            are those of the validation files, half of them of other genres, and 21,589 are of the training file, in
            which a premise comes up to three times: it may be in several parts.
        Group: the class.
        Memory: 422 MB of tokens at 128 tokens a pair, memory-mapped with ``cache_dir``; 150 MB of text.

    Labels are those of single annotators or majorities, and at times wrong: which ones is not known.

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
