import json
import re

import pytest
import torch

from reducr.data import RawData
from reducr.data.io.text import SPECIAL_TOKENS, TextDataModule, Texts, Tokenization

WORDS = ("red", "green", "blue", "round", "square", "large", "small", "door", "window", "roof")
PAD, UNK, CLS, SEP = range(4)


def sentences(count, start=0):
    """Different sentences of three to six words."""
    return [
        " ".join(WORDS[(start + place * step) % len(WORDS)] for step in range(1, 4 + place % 4)) + "."
        for place in range(count)
    ]


def pairs(count):
    return Texts(sentences(count), sentences(count, start=5))


def all_of(texts):
    return torch.arange(len(texts))


def rows(tokens):
    """Ids and segments of each sequence, without padding."""
    return [(row[0][row[1] >= 0].tolist(), row[1][row[1] >= 0].tolist()) for row in tokens]


@pytest.fixture
def published(tmp_path):
    """A folder as ``save_pretrained`` writes it, of a tokenizer of whole words with marks of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=20
    )
    fast.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def test_one_text_is_a_sequence_of_one_segment():
    texts = Texts(sentences(40))
    tokens, facts = Tokenization().encoded(texts, all_of(texts))
    assert tokens.dtype == torch.int32
    assert tokens.shape == (40, 2, facts["max_length"])
    for ids, segments in rows(tokens):
        assert ids[0] == CLS
        assert ids[-1] == SEP
        assert ids.count(SEP) == 1
        assert set(segments) == {0}
    assert int(tokens[:, 0].max()) < facts["num_tokens"] <= 8000
    assert facts["max_length"] == max(len(ids) for ids, _ in rows(tokens))


def test_a_pair_is_a_sequence_of_two_segments():
    tokens, _ = Tokenization().encoded(pairs(40), torch.arange(40))
    for ids, segments in rows(tokens):
        first_end = ids.index(SEP)
        assert ids[-1] == SEP
        assert ids.count(SEP) == 2
        assert segments == [0] * (first_end + 1) + [1] * (len(ids) - first_end - 1)


def test_padding_is_at_the_end_with_segment_minus_one():
    tokens, facts = Tokenization().encoded(pairs(40), torch.arange(40))
    is_padding = tokens[:, 1] == -1
    assert bool(is_padding.any())
    assert torch.equal(is_padding, is_padding.cummax(dim=1).values)
    assert set(tokens[:, 0][is_padding].tolist()) == {PAD}
    assert not bool(is_padding[:, 0].any())
    assert int((~is_padding).sum(dim=1).max()) == facts["max_length"]


def test_the_longer_text_of_a_pair_is_truncated():
    texts = Texts([" ".join(WORDS), "red door"] * 3, ["red door", " ".join(WORDS)] * 3)
    tokens, facts = Tokenization(max_length=9).encoded(texts, all_of(texts))
    assert facts["max_length"] == 9
    lengths = [(ids.index(SEP) - 1, len(ids) - ids.index(SEP) - 2) for ids, _ in rows(tokens)]
    assert lengths == [(4, 2), (2, 4)] * 3


def test_the_vocabulary_is_learned_from_the_training_examples_only():
    texts = Texts([*sentences(30), *["zebra xylophone"] * 10])
    train = torch.arange(30)
    tokens, facts = Tokenization().encoded(texts, train)
    assert tokens[30, 0].tolist().count(UNK) > 0
    other, other_facts = Tokenization().encoded(Texts([*sentences(30), *["quick quokka"] * 10]), train)
    assert other_facts["num_tokens"] == facts["num_tokens"]
    length = min(tokens.shape[2], other.shape[2])
    assert torch.equal(tokens[:30, :, :length], other[:30, :, :length])
    everything, _ = Tokenization().encoded(texts, all_of(texts))
    assert everything[30, 0].tolist().count(UNK) == 0


def test_the_vocabulary_is_deterministic(tmp_path):
    texts = pairs(200)
    results = []
    for name in ("a", "b"):
        tokens, _ = Tokenization(num_tokens=60, cache_dir=tmp_path / name).encoded(texts, torch.arange(0, 200, 2))
        (tokenizer,) = (tmp_path / name).glob("tokenizer_*.json")
        results.append((tokens.tolist(), tokenizer.read_bytes()))
    assert results[0] == results[1]


def test_num_tokens_is_the_largest_vocabulary():
    texts = Texts(sentences(200))
    assert Tokenization(num_tokens=50).encoded(texts, all_of(texts))[1]["num_tokens"] == 50
    with pytest.raises(
        ValueError,
        match=r"datamodule\.num_tokens=10 is too small for the characters .* Set it to at least (\d+)\.",
    ) as caught:
        Tokenization(num_tokens=10).encoded(texts, all_of(texts))
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert Tokenization(num_tokens=least).encoded(texts, all_of(texts))[1]["num_tokens"] == least


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("red door", "RED Door"),  # case
        ("ﬁne", "fine"),  # NFKC
        ("ｒｅｄ", "red"),
        ("red  \n door", " red door "),  # blanks
        ("door.", "door ."),  # punctuation
    ],
)
def test_texts_with_the_same_normal_form_have_the_same_tokens(text, variant):
    texts = Texts([text, variant] * 5)
    tokens, _ = Tokenization().encoded(texts, all_of(texts))
    assert torch.equal(tokens[0], tokens[1])


def test_a_piece_within_a_word_differs_from_a_word():
    texts = Texts(["playing", "play ing", *["play", "ing", "playing"] * 3])
    tokens, _ = Tokenization(num_tokens=20).encoded(texts, all_of(texts))
    assert not torch.equal(tokens[0], tokens[1])


def test_special_tokens_in_a_text_are_text():
    texts = Texts(["[SEP] door [PAD]", "red"] * 5)
    tokens, _ = Tokenization().encoded(texts, all_of(texts))
    ids, _ = rows(tokens)[0]
    assert ids.count(SEP) == 1
    assert PAD not in ids


def test_an_empty_text_has_only_special_tokens():
    texts = Texts(["", "red", "red"])
    assert rows(Tokenization().encoded(texts, all_of(texts))[0])[0] == ([CLS, SEP], [0, 0])


def test_a_published_tokenizer_uses_its_own_special_tokens(published):
    texts = Texts(["red door.", "yellow roof"], ["blue", "large small window"])
    tokens, facts = Tokenization(tokenizer=str(published), max_length=20).encoded(texts, torch.tensor([0]))
    place = {word: number for number, word in enumerate(WORDS, start=5)}
    red, blue, door, roof = (place[word] for word in ("red", "blue", "door", "roof"))
    large, small, window = (place[word] for word in ("large", "small", "window"))
    assert rows(tokens) == [
        ([1, red, door, 4, 2, 2, blue, 2], [0, 0, 0, 0, 0, 0, 1, 1]),
        ([1, 0, roof, 2, 2, large, small, window, 2], [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ]
    assert tokens[0, :, -1].tolist() == [3, -1]
    assert facts == {"num_tokens": 15, "max_length": 9}


def test_a_published_tokenizer_does_not_depend_on_the_split(published):
    texts = Texts(sentences(10))
    tokenization = Tokenization(tokenizer=str(published), max_length=8)
    tokens, _ = tokenization.encoded(texts, torch.arange(5))
    again, _ = tokenization.encoded(texts, torch.arange(5, 10))
    assert again is tokens
    assert tokens.shape[2] == 8


def test_tokens_are_computed_once_for_a_split():
    texts = Texts(sentences(10))
    tokenization = Tokenization()
    tokens, _ = tokenization.encoded(texts, torch.arange(5))
    assert tokenization.encoded(texts, torch.arange(5))[0] is tokens
    assert tokenization.encoded(texts, torch.arange(6))[0] is not tokens


def cache_of(folder):
    """The files of the only entry, and what must not change if it is used: inode and time."""
    (array,) = folder.glob("tokens_*.npy")
    (tokenizer,) = folder.glob("tokenizer_*.json")
    return array, {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (array, tokenizer)}


@pytest.mark.parametrize("name", ["own", "published"])
def test_a_second_run_uses_the_cache(tmp_path, published, name):
    tokenizer = str(published) if name == "published" else name
    texts = pairs(30)
    cache = tmp_path / "cache"
    first, facts = Tokenization(tokenizer=tokenizer, max_length=12, cache_dir=cache).encoded(texts, all_of(texts))
    array, before = cache_of(cache)
    again, facts_again = Tokenization(tokenizer=tokenizer, max_length=12, cache_dir=cache).encoded(texts, all_of(texts))
    assert cache_of(cache) == (array, before)
    assert torch.equal(first, again)
    assert facts == facts_again
    without, _ = Tokenization(tokenizer=tokenizer, max_length=12).encoded(texts, all_of(texts))
    assert torch.equal(without, again)


def test_tokens_are_read_from_the_cache(tmp_path):
    """The array with another value in it, and a manifest that vouches for it: the tokens come from the file."""
    from reducr._internal.files import file_checksum

    texts = Texts(sentences(20))
    Tokenization(cache_dir=tmp_path).encoded(texts, all_of(texts))
    array, _ = cache_of(tmp_path)
    content = bytearray(array.read_bytes())
    content[-4:] = (77).to_bytes(4, "little")
    array.write_bytes(content)
    manifest = array.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "checksum": file_checksum(array)}))
    tokens, _ = Tokenization(cache_dir=tmp_path).encoded(texts, all_of(texts))
    assert int(tokens[-1, -1, -1]) == 77


@pytest.mark.parametrize(
    "damage",
    [
        lambda array: array.write_bytes(array.read_bytes()[:-1]),
        lambda array: array.write_bytes(array.read_bytes()[:-1] + b"\x7f"),
        lambda array: array.write_bytes(b""),
        lambda array: array.unlink(),
        lambda array: array.with_suffix(".json").write_text("{"),
        lambda array: array.with_suffix(".json").write_text("[]"),
        lambda array: array.with_suffix(".json").unlink(),
        lambda array: next(array.parent.glob("tokenizer_*")).unlink(),
    ],
    ids=["cut", "altered", "empty", "no array", "no json", "other json", "no manifest", "no tokenizer"],
)
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    texts = Texts(sentences(20))
    tokens, facts = Tokenization(cache_dir=tmp_path).encoded(texts, all_of(texts))
    tokens = tokens.clone()
    array, _ = cache_of(tmp_path)
    content = array.read_bytes()
    damage(array)
    again, facts_again = Tokenization(cache_dir=tmp_path).encoded(texts, all_of(texts))
    assert torch.equal(tokens, again)
    assert facts == facts_again
    assert array.read_bytes() == content
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["tokenizer", "tokens", "tokens"]


def test_other_texts_splits_and_options_have_another_cache(tmp_path):
    texts = Texts(sentences(20))
    train = torch.arange(10)
    for tokenization, variant, source in (
        (Tokenization(cache_dir=tmp_path), texts, train),
        (Tokenization(cache_dir=tmp_path, max_length=8), texts, train),
        (Tokenization(cache_dir=tmp_path, num_tokens=40), texts, train),
        (Tokenization(cache_dir=tmp_path), texts, train + 1),
        (Tokenization(cache_dir=tmp_path), Texts(texts.first, texts.first), train),
        (Tokenization(cache_dir=tmp_path), Texts([*texts.first[:-1], "other"]), train),
    ):
        tokenization.encoded(variant, source)
    assert len(list(tmp_path.glob("tokens_*.npy"))) == 6


def test_the_tokenizer_beside_the_cache_gives_the_same_ids(tmp_path):
    from tokenizers import Tokenizer

    texts = pairs(20)
    tokens, facts = Tokenization(cache_dir=tmp_path, max_length=10).encoded(texts, all_of(texts))
    (path,) = tmp_path.glob("tokenizer_*.json")
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.get_vocab_size() == facts["num_tokens"]
    assert [tokenizer.id_to_token(number) for number in range(4)] == list(SPECIAL_TOKENS)
    for (ids, _), first, second in zip(rows(tokens), texts.first, texts.second, strict=True):
        assert tokenizer.encode(first, second).ids == ids


def test_different_texts_have_different_checksums():
    same = Texts(["a", "b"], ["c", "d"])
    assert same.checksum == Texts(["a", "b"], ["c", "d"]).checksum
    others = [
        Texts(["a", "b"]),
        Texts(["a", "b", "c", "d"]),
        Texts(["ab", ""], ["c", "d"]),
        Texts(["a", "b"], ["d", "c"]),
    ]
    assert len({texts.checksum for texts in (same, *others)}) == 5


def test_pairs_need_two_texts_each():
    with pytest.raises(ValueError, match="first and second must have the same length; got 2 and 1"):
        Texts(["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 4}, r"datamodule\.num_tokens must be a whole number of at least 5; got 4"),
        ({"num_tokens": 10.0}, r"datamodule\.num_tokens must be a whole number of at least 5; got 10\.0"),
        ({"max_length": 4}, r"datamodule\.max_length must be a whole number of at least 5; got 4"),
        ({"max_length": True}, r"datamodule\.max_length must be a whole number of at least 5; got True"),
        (
            {"tokenizer": "some/name", "num_tokens": 100},
            r"`datamodule\.num_tokens=100` has no effect: some/name has its own vocabulary",
        ),
    ],
)
def test_options_out_of_range_are_errors_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        Tokenization(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nobody/such-tokenizer",
            r"There is no tokenizer 'nobody/such-tokenizer', .* Set `datamodule\.tokenizer` to a folder or to `own`",
        ),
        ("./nowhere", r"datamodule\.tokenizer=\./nowhere: there is no such folder"),
    ],
)
def test_a_missing_tokenizer_is_an_error(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        Tokenization(tokenizer=name).encoded(Texts(["a"]), torch.tensor([0]))


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"There is no tokenizer '{tmp_path}'")):
        Tokenization(tokenizer=str(tmp_path)).encoded(Texts(["a"]), torch.tensor([0]))


def test_sequences_too_long_for_the_model_are_an_error(published):
    with pytest.raises(ValueError, match=r"datamodule\.max_length=64 is too long: .* take at most 20 tokens"):
        Tokenization(tokenizer=str(published)).encoded(Texts(["a"]), torch.tensor([0]))


class Sentences(TextDataModule):
    """Two classes, distinguished by the first word."""

    def read(self):
        target = torch.arange(60) % 2
        texts = Texts([f"{('good', 'bad')[place % 2]} {WORDS[place % 10]}" for place in range(60)])
        return RawData(input=texts, target=target, class_names=("good", "bad"), facts={"num_other": 3})


def test_a_data_set_of_texts_gives_tokens_and_facts():
    module = Sentences(num_tokens=200, max_length=6, holdout_size=10, test_size=10)
    splits = module.splits(seed=0)
    assert splits.facts == {"num_other": 3, "num_tokens": splits.facts["num_tokens"], "max_length": 4, "has_pairs": 0}
    assert splits.train.input.shape == (40, 2, 4)
    first = splits.test.input[:, 0, 1]
    assert len(set(first[splits.test.target == 0].tolist())) == 1
    assert len(set(first.tolist())) == 2
