"""Train or load a tokenizer, and tokenize texts with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from reducr.data.io.text import Texts

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_TEXTS_PER_CALL = 2000  # the tokenizer returns far more than ids, so all texts at once would need much memory


def trained_tokenizer(texts: Iterator[str], *, num_tokens: int, max_length: int) -> Tokenizer:
    """A byte-pair-encoding tokenizer with a vocabulary learned from ``texts``.

    Args:
        texts: the training texts.
        num_tokens: largest size of the vocabulary.
        max_length: largest number of tokens of a sequence; longer ones are truncated.

    Raises:
        ValueError: if ``num_tokens`` is less than the number of different characters needs.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # a mark at the start of each word tells its first piece from the same characters within a word
    word_marks = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), word_marks])
    special = {token: SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(special.items())
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # a text that contains "[SEP]" is split like any other
    if tokenizer.get_vocab_size() > num_tokens:
        raise ValueError(
            f"datamodule.num_tokens={num_tokens} is too small for the characters of the training texts. Set it to at "
            f"least {tokenizer.get_vocab_size()}."
        )
    _truncate(tokenizer, max_length)
    return tokenizer


def published_tokenizer(name: str, *, max_length: int, download: bool) -> tuple[Tokenizer, int]:
    """A published tokenizer and the id of its padding token.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        max_length: largest number of tokens of a sequence; longer ones are truncated.
        download: whether to download the tokenizer if it is not in the hub's local cache.

    Raises:
        FileNotFoundError: if there is no such tokenizer; says how to get it.
        ValueError: if the tokenizer has no ``tokenizer.json``, or its models take fewer than ``max_length`` tokens.
    """
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"datamodule.tokenizer={name}: there is no such folder.")
    published = _from_pretrained(str(folder) if folder.is_dir() else name, download=download)
    backend = getattr(published, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"datamodule.tokenizer={name} is a {type(published).__name__}. Expected a fast tokenizer, with a "
            "tokenizer.json."
        )
    if max_length > published.model_max_length:
        raise ValueError(
            f"datamodule.max_length={max_length} is too long: the models of {name} take at most "
            f"{published.model_max_length} tokens."
        )
    _truncate(backend, max_length)
    return backend, published.pad_token_id or 0


def tokenized(texts: Texts, tokenizer: Tokenizer, *, max_length: int, pad: int) -> Tensor:
    """The tokens of N texts.

    Args:
        texts: N.
        tokenizer: truncates to ``max_length``.
        max_length: at least the length of the longest sequence.
        pad: id of the padding token.

    Returns:
        (N, 2, L) int32, ids and segments, with L the length of the longest sequence; see ``Tokenization.encoded``.
    """
    tokens = np.full((len(texts), 2, max_length), -1, dtype=np.int32)
    tokens[:, 0] = pad
    longest = 0
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        chunk = slice(start, start + _TEXTS_PER_CALL)
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


def _from_pretrained(name: str, *, download: bool) -> Any:
    """The transformers tokenizer in a folder or of that name on the hub, which is only asked if no copy is cached."""
    from transformers import AutoTokenizer

    try:
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            if not download:
                raise
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no tokenizer {name!r}, neither a folder with a tokenizer.json nor in the local cache of the "
            f"Hugging Face hub ({str(error).splitlines()[0]}). Set `datamodule.tokenizer` to a folder or to `own`, "
            "which needs no files, or set `datamodule.download=true` to download it from the hub."
        ) from error


def _truncate(tokenizer: Tokenizer, max_length: int) -> None:
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
