"""Data sets of texts, tokenized once with a vocabulary learned from the training examples or a published tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reducr._internal.checks import check_count
from reducr.data.core.module import DataModule
from reducr.data.core.raw import RawData
from reducr.data.io.token_cache import cached_tokens, write_tokens
from reducr.data.io.tokenizer import SPECIAL_TOKENS, published_tokenizer, tokenized, trained_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OWN = "own"
_NUM_OWN_TOKENS = 8000
_MIN_LENGTH = 5  # [CLS] first [SEP] second [SEP]
_TOKENIZATION_VERSION = 1
"""Part of every cache key. Increase it when texts become different tokens."""


@dataclass(frozen=True)
class Texts:
    """N texts, or N pairs of texts.

    Args:
        first: N.
        second: N; None for single texts.

    Raises:
        ValueError: if the lengths differ.
    """

    first: Sequence[str]
    second: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.second is not None and len(self.second) != len(self.first):
            raise ValueError(
                f"first and second must have the same length; got {len(self.first)} and {len(self.second)}."
            )

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all texts in order."""
        checksum = hashlib.sha256(f"{len(self)} {self.second is not None}".encode())
        for text in (*self.first, *(self.second or ())):
            content = text.encode(errors="surrogatepass")
            checksum.update(f" {len(content)} ".encode() + content)
        return checksum.hexdigest()

    def at(self, positions: Sequence[int]) -> Iterator[str]:
        """Yield the first texts at ``positions``, then the second ones."""
        for texts in (self.first, self.second or ()):
            yield from (texts[position] for position in positions if texts)


class Tokenization:
    """Turns texts into tokens, once for each vocabulary.

    A sequence is ``[CLS] first [SEP]``, or ``[CLS] first [SEP] second [SEP]`` for a pair. A published tokenizer uses
    its own special tokens. Sequences that are too long are truncated; of a pair, the longer text loses tokens first.

    The tokenizer ``own`` is a byte-pair encoding learned from the training examples only. It normalises texts to NFKC
    and lower case, and splits them at whitespace and around punctuation. It is deterministic: the same texts and
    options give the same vocabulary.

    Args:
        tokenizer: ``own``, a local folder, or a name on the Hugging Face hub.
        num_tokens: V, largest vocabulary of ``own``, whose first four tokens are ``[PAD]``, ``[UNK]``, ``[CLS]`` and
            ``[SEP]``; None for 8,000. Not for a published tokenizer.
        max_length: largest number of tokens of a sequence, special tokens included.
        cache_dir: folder where tokens are kept for later runs (``tokens_*.npy``), with the tokenizer
            (``tokenizer_*.json``, for ``tokenizers.Tokenizer.from_file``); None for no cache.
        download: whether to download the tokenizer if it is not in the hub's local cache.

    Raises:
        ValueError: if a number is out of range, or ``num_tokens`` is set with a published tokenizer.

    Source: byte-pair encoding as in Sennrich, Haddow & Birch 2016 (arXiv 1508.07909).
    """

    def __init__(
        self,
        *,
        tokenizer: str = OWN,
        num_tokens: int | None = None,
        max_length: int = 64,
        cache_dir: str | Path | None = None,
        download: bool = False,
    ) -> None:
        if num_tokens is not None and tokenizer != OWN:
            raise ValueError(
                f"`datamodule.num_tokens={num_tokens}` has no effect: {tokenizer} has its own vocabulary. Remove it, "
                "or set `datamodule.tokenizer=own`."
            )
        self.tokenizer = tokenizer
        self.num_tokens = _NUM_OWN_TOKENS if num_tokens is None else num_tokens
        self.max_length = max_length
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.download = download
        check_count("datamodule.num_tokens", self.num_tokens, least=len(SPECIAL_TOKENS) + 1)
        check_count("datamodule.max_length", max_length, least=_MIN_LENGTH)
        self._latest: tuple[str, Tensor, dict[str, int]] | None = None

    def encoded(self, texts: Texts, train_source: Tensor) -> tuple[Tensor, dict[str, int]]:
        """The tokens of N texts.

        Args:
            texts: N.
            train_source: (M,) int64, positions of the training examples in ``texts``.

        Returns:
            Tokens (N, 2, L) int32, with L the length of the longest sequence. Row 0 holds the id of each token. Row 1
            holds its segment: 0 for ``[CLS]``, the first text and its ``[SEP]``, 1 for the second text and its
            ``[SEP]``, -1 for the padding at the end. And the facts ``num_tokens`` (V) and ``max_length`` (L).

        Raises:
            FileNotFoundError: if there is no such tokenizer; says how to get it.
            ValueError: if the tokenizer cannot be used, or ``num_tokens`` is too small for the characters of the texts.
        """
        key = self._key(texts, train_source)
        if self._latest is None or self._latest[0] != key:
            cached = None if self.cache_dir is None else cached_tokens(self.cache_dir, key)
            self._latest = (key, *(cached or self._new_tokens(texts, train_source, key)))
        _, tokens, facts = self._latest
        return tokens, facts

    def _key(self, texts: Texts, train_source: Tensor) -> str:
        """SHA-256 of everything that the tokens depend on."""
        import tokenizers

        if self.tokenizer == OWN:
            origin = f"{self.num_tokens} {train_source.tolist()}"
        else:
            tokenizer, pad = self._published
            origin = f"{pad} {tokenizer.to_str()}"
        parts = (_TOKENIZATION_VERSION, tokenizers.__version__, self.max_length, texts.checksum, origin)
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def _new_tokens(self, texts: Texts, train_source: Tensor, key: str) -> tuple[Tensor, dict[str, int]]:
        """Tokenize, and store the tokens under ``key`` if there is a cache."""
        if self.tokenizer == OWN:
            train_texts = texts.at(train_source.tolist())
            tokenizer = trained_tokenizer(train_texts, num_tokens=self.num_tokens, max_length=self.max_length)
            pad = SPECIAL_TOKENS.index("[PAD]")
        else:
            tokenizer, pad = self._published
        tokens = tokenized(texts, tokenizer, max_length=self.max_length, pad=pad)
        num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        facts = {"num_tokens": num_tokens, "max_length": tokens.shape[2]}
        if self.cache_dir is not None:
            tokens = write_tokens(self.cache_dir, key, tokens, facts=facts, tokenizer=tokenizer)
        return tokens, facts

    @cached_property
    def _published(self) -> tuple[Tokenizer, int]:
        return published_tokenizer(self.tokenizer, max_length=self.max_length, download=self.download)


class TextDataModule(DataModule):
    """A data set of texts: ``read`` gives ``Texts``, and models get the tokens of ``Tokenization.encoded``.

    Args:
        tokenizer, num_tokens, max_length, cache_dir, download: see ``Tokenization``.
        options: those of ``DataModule``.
    """

    def __init__(
        self,
        *,
        tokenizer: str = OWN,
        num_tokens: int | None = None,
        max_length: int = 64,
        cache_dir: str | Path | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tokenization = Tokenization(
            tokenizer=tokenizer, num_tokens=num_tokens, max_length=max_length, cache_dir=cache_dir, download=download
        )

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with tokens in place of texts."""
        return with_tokens(raw, self.tokenization, train_source)


def with_tokens(raw: RawData, tokenization: Tokenization, train_source: Tensor) -> RawData:
    """``raw`` with tokens in place of its ``Texts``, and with the facts that a model needs about them."""
    tokens, facts = tokenization.encoded(raw.input, train_source)
    return replace(raw, input=tokens, facts={**raw.facts, **facts, "has_pairs": int(raw.input.second is not None)})
