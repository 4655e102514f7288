"""Texts as tokens: by a vocabulary of the training points, or by a published tokenizer; done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import file_checksum, replaced_atomically, write_text_atomically
from reducr.data.core.module import DataModule, RawData

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OWN = "own"
_NUM_OWN_TOKENS = 8000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# [CLS] and two [SEP], and a token of each text
_MIN_LENGTH = 5
# changes when texts become other tokens, so that a cache made before is not used
_ENCODING = 1
# texts given to the tokenizer at a time, which holds more than their tokens
_CHUNK = 2000


@dataclass(frozen=True)
class Texts:
    """N texts, or pairs of texts.

    Args:
        first: N.
        second: N; None where there are no pairs.

    Raises:
        ValueError: for different numbers of them.
    """

    first: Sequence[str]
    second: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.second is not None and len(self.second) != len(self.first):
            raise ValueError(f"every first text needs a second one; got {len(self.first)} and {len(self.second)}.")

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
        """All texts, first and second ones, of the points at ``positions``."""
        for texts in (self.first, self.second or ()):
            yield from (texts[position] for position in positions if texts)


class Tokenization:
    """Turns texts into tokens, once for each vocabulary.

    A sequence is ``[CLS] first [SEP]``, of a pair ``[CLS] first [SEP] second [SEP]``, with the tokens that a published
    tokenizer has in their place. Too long ones are cut; of a pair, the longer text is, token by token.

    The vocabulary ``own`` is one of merged pairs of characters, learnt from the training points alone; texts are put
    into NFKC and lower case, and split at blanks and around punctuation. The same texts and options give the same one.

    Args:
        tokenizer: ``own``, a local folder, or a name on the Hugging Face hub.
        num_tokens: V of ``own``, the largest vocabulary, of which ``[PAD]``, ``[UNK]``, ``[CLS]`` and ``[SEP]`` are the
            first four tokens; None for 8,000. A published tokenizer has its own.
        max_length: the most tokens of a sequence, with the special ones.
        cache_dir: where tokens are kept for later calls, in ``tokens_*.npy``, with the tokenizer beside them in
            ``tokenizer_*.json``, which ``tokenizers.Tokenizer.from_file`` reads; None for nowhere.
        download: whether a tokenizer may be got from the hub where it is not in the hub's local cache.

    Raises:
        ValueError: for a number out of range, or ``num_tokens`` with a published tokenizer.

    Source: merged pairs as in Sennrich, Haddow & Birch 2016 (arXiv 1508.07909).
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
                f"datamodule.num_tokens={num_tokens} changes nothing: datamodule.tokenizer={tokenizer} has its own "
                "vocabulary. Leave it out, or give datamodule.tokenizer=own."
            )
        self.tokenizer = tokenizer
        self.num_tokens = _NUM_OWN_TOKENS if num_tokens is None else num_tokens
        self.max_length = max_length
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.download = download
        check_least("num_tokens", self.num_tokens, len(SPECIAL_TOKENS) + 1)
        check_least("max_length", max_length, _MIN_LENGTH)
        self._last: tuple[str, Tensor, dict[str, int]] | None = None

    def encoded(self, texts: Texts, train_source: Tensor) -> tuple[Tensor, dict[str, int]]:
        """The tokens of N texts.

        Args:
            texts: N.
            train_source: (M,) int64, the positions of the training points among them.

        Returns:
            (N, 2, L) int32: the id of each token, and the text it is of: 0 for the first one and what stands before
            and after it, 1 for the second one and what stands after it, -1 for padding, which is at the end. L is the
            longest sequence. And the facts ``num_tokens``, V, and ``max_length``, L.

        Raises:
            FileNotFoundError: if the tokenizer is not there; says how to get it.
            ValueError: if it cannot be used, or if ``num_tokens`` is too small for the characters of the texts.
        """
        key = self._key(texts, train_source)
        if self._last is None or self._last[0] != key:
            found = None if self.cache_dir is None else _cached(self.cache_dir, key)
            self._last = (key, *(found or self._made(texts, train_source, key)))
        _, tokens, facts = self._last
        return tokens, facts

    def _key(self, texts: Texts, train_source: Tensor) -> str:
        """SHA-256 of what the tokens depend on."""
        import tokenizers

        if self.tokenizer == OWN:
            origin = f"{self.num_tokens} {train_source.tolist()}"
        else:
            tokenizer, pad = self._published
            origin = f"{pad} {tokenizer.to_str()}"
        parts = (_ENCODING, tokenizers.__version__, self.max_length, texts.checksum, origin)
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def _made(self, texts: Texts, train_source: Tensor, key: str) -> tuple[Tensor, dict[str, int]]:
        """What ``encoded`` returns, kept under ``key`` if there is a folder for it."""
        if self.tokenizer == OWN:
            tokenizer, pad = _trained(texts.at(train_source.tolist()), num_tokens=self.num_tokens), 0
            _cut_long(tokenizer, self.max_length)
        else:
            tokenizer, pad = self._published
        tokens = _tokens(texts, tokenizer, max_length=self.max_length, pad=pad)
        num_tokens = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        facts = {"num_tokens": num_tokens, "max_length": tokens.shape[2]}
        if self.cache_dir is not None:
            tokens = _written(self.cache_dir, key, tokens, facts=facts, tokenizer=tokenizer)
        return tokens, facts

    @cached_property
    def _published(self) -> tuple[Tokenizer, int]:
        """The published tokenizer, and the id of its padding."""
        folder = Path(self.tokenizer).expanduser()
        if self.tokenizer.startswith((".", "/", "~")) and not folder.is_dir():
            raise FileNotFoundError(f"datamodule.tokenizer={self.tokenizer}: there is no such folder.")
        published = _from_pretrained(str(folder) if folder.is_dir() else self.tokenizer, download=self.download)
        backend = getattr(published, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"datamodule.tokenizer={self.tokenizer} is a {type(published).__name__}; expected one of the "
                "tokenizers library, with a tokenizer.json."
            )
        if self.max_length > published.model_max_length:
            raise ValueError(
                f"datamodule.max_length={self.max_length} is too long for the models of {self.tokenizer}, which take "
                f"at most {published.model_max_length} tokens."
            )
        _cut_long(backend, self.max_length)
        return backend, published.pad_token_id or 0


class TextDataModule(DataModule):
    """A data set of texts, the input of ``read`` being ``Texts``; what models get is that of ``Tokenization.encoded``.

    Args:
        tokenizer: and ``num_tokens``, ``max_length``, ``cache_dir``, ``download``: see ``Tokenization``.
        num_tokens: see above.
        max_length: see above.
        cache_dir: see above.
        download: see above.
        options: of ``DataModule``.
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
        """``raw`` with tokens."""
        return with_tokens(raw, self.tokenization, train_source)


def with_tokens(raw: RawData, tokenization: Tokenization, train_source: Tensor) -> RawData:
    """``raw``, whose input is ``Texts``, with their tokens and what a model must know of these."""
    tokens, facts = tokenization.encoded(raw.input, train_source)
    return replace(raw, input=tokens, facts={**raw.facts, **facts, "has_pairs": int(raw.input.second is not None)})


def _from_pretrained(place: str, *, download: bool) -> Any:
    """The transformers tokenizer in a folder, or of that name on the hub, which is asked only if no copy is here."""
    from transformers import AutoTokenizer

    try:
        try:
            return AutoTokenizer.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError):
            if not download:
                raise
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"there is no tokenizer {place!r}, neither a folder with a tokenizer.json nor in the local cache of the "
            f"Hugging Face hub ({str(error).splitlines()[0]}). Give datamodule.tokenizer=DIR, a folder it was saved "
            "to, datamodule.download=true to get it from the hub, or datamodule.tokenizer=own, which needs none."
        ) from error


def _trained(texts: Iterator[str], *, num_tokens: int) -> Tokenizer:
    """A tokenizer with a vocabulary learnt from ``texts``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # every word begins with a mark, so that its first piece is not taken for a piece from within a word
    marked = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), marked])
    special = {token: SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(special.items())
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # a "[SEP]" that a text holds is text
    if tokenizer.get_vocab_size() > num_tokens:
        raise ValueError(
            f"datamodule.num_tokens={num_tokens} is too few: the training texts have so many different characters that "
            f"at least {tokenizer.get_vocab_size()} are needed."
        )
    return tokenizer


def _cut_long(tokenizer: Tokenizer, max_length: int) -> None:
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")


def _tokens(texts: Texts, tokenizer: Tokenizer, *, max_length: int, pad: int) -> Tensor:
    """(N, 2, L) int32, see ``Tokenization.encoded``."""
    tokens = np.full((len(texts), 2, max_length), -1, dtype=np.int32)
    tokens[:, 0] = pad
    longest = 0
    for start in range(0, len(texts), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        inputs: Any = texts.first[chunk]
        if texts.second is not None:
            inputs = list(zip(inputs, texts.second[chunk], strict=True))
        for row, encoding in zip(tokens[chunk], tokenizer.encode_batch(list(inputs)), strict=True):
            length = len(encoding.ids)
            row[0, :length] = encoding.ids
            row[1, :length] = 0
            if texts.second is not None and 1 in encoding.sequence_ids:
                row[1, encoding.sequence_ids.index(1) : length] = 1
            longest = max(longest, length)
    return torch.from_numpy(np.ascontiguousarray(tokens[:, :, :longest]))


def _cached(folder: Path, key: str) -> tuple[Tensor, dict[str, int]] | None:
    """The tokens kept under ``key``, memory-mapped, and their facts; None unless they are there and undamaged."""
    array, manifest_path, tokenizer = _cache_paths(folder, key)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["key"] != key or manifest["checksum"] != file_checksum(array) or not tokenizer.is_file():
            return None
        return _mapped(array), manifest["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(folder: Path, key: str, tokens: Tensor, *, facts: Mapping[str, int], tokenizer: Tokenizer) -> Tensor:
    """The tokens, memory-mapped, kept under ``key``: the manifest comes last, without which there is no cache."""
    array, manifest_path, tokenizer_path = _cache_paths(folder, key)
    with replaced_atomically(array) as temporary, temporary.open("wb") as file:
        np.save(file, tokens.numpy())
    write_text_atomically(tokenizer_path, tokenizer.to_str(pretty=True))
    manifest = {"key": key, "checksum": file_checksum(array), "facts": facts}
    write_text_atomically(manifest_path, json.dumps(manifest))
    return _mapped(array)


def _mapped(array: Path) -> Tensor:
    # a page that is written to, which nothing does, would become the process's own: the file stays as it is
    return torch.from_numpy(np.load(array, mmap_mode="c"))


def _cache_paths(folder: Path, key: str) -> tuple[Path, Path, Path]:
    name = key[:16]
    return folder / f"tokens_{name}.npy", folder / f"tokens_{name}.json", folder / f"tokenizer_{name}.json"


def check_least(option: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"datamodule.{option} must be a whole number of at least {least}; got {value!r}.")
