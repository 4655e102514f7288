import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reducr.irreducible.ensemble import Ensemble
from reducr.models import SmallTextClassifier, TransformersTextClassifier

SIZES = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
BERT = {"pretrained": False, "architecture": "bert", "config": SIZES}


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_texts(*sizes, length=12, num_tokens=20, padding=0):
    """One row for each pair (size of the first text, size of the second)."""
    texts = torch.full((len(sizes), 2, length), padding)
    texts[:, 1] = -1
    for row, (first, second) in zip(texts, sizes, strict=True):
        row[0, : first + second] = torch.randint(1, num_tokens, (first + second,))
        row[1, :first] = 0
        row[1, first : first + second] = 1
    return texts


def make_small(**options):
    return SmallTextClassifier(num_classes=3, num_tokens=20, **options)


def make_transformers(architecture, **config):
    sizes = {"hidden_size": 8, "vocab_size": 20, "pad_token_id": 0, **config}
    return TransformersTextClassifier(3, pretrained=False, architecture=architecture, config=sizes)


MAKES = {
    "one_text": make_small,
    "pair": lambda: make_small(has_pairs=True),
    "bert": lambda: make_transformers("bert", **SIZES),
    "roberta": lambda: make_transformers("roberta", **SIZES),
    "distilbert": lambda: TransformersTextClassifier(
        3, pretrained=False, architecture="distilbert", config={"vocab_size": 20, "dim": 12, "hidden_dim": 8}
    ),
    # classifies at the last token
    "gpt2": lambda: make_transformers("gpt2", n_layer=1, n_head=2, pad_token_id=None, eos_token_id=0),
}


@pytest.mark.parametrize("name", MAKES)
def test_neither_padding_nor_the_rest_of_the_batch_changes_logits(name):
    model = MAKES[name]().eval()
    texts = make_texts((3, 4), (5, 6), (1, 1), (2, 9))
    logits = model(texts)
    assert logits.shape == (4, 3)
    assert logits.std() > 0
    assert torch.equal(model(texts.int()), logits)
    for row, expected in zip(texts, logits, strict=True):
        size = int((row[1] >= 0).sum())
        unpadded = row[:, :size].unsqueeze(0)
        longer = F.pad(unpadded, (0, 20))
        longer[:, 0, size:] = 7  # any token: the segments mark padding
        longer[:, 1, size:] = -1
        torch.testing.assert_close(model(unpadded)[0], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(longer)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_pairs", [False, True])
def test_small_model_is_finite_for_texts_without_tokens(has_pairs):
    texts = make_texts((0, 0), (3, 0), (0, 2))
    model = make_small(has_pairs=has_pairs)
    model(texts).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert torch.isfinite(model(texts[:1])).all()


@pytest.mark.parametrize(("has_pairs", "uses_segments"), [(False, False), (True, True)])
def test_small_model_uses_segments_only_for_pairs(has_pairs, uses_segments):
    model = make_small(has_pairs=has_pairs)
    texts = make_texts((4, 3))
    moved = texts.clone()
    moved[0, 1, 3] = 1
    assert torch.allclose(model(texts), model(moved)) != uses_segments


def test_small_model_of_one_text_uses_mean_and_maximum_of_a_convolution():
    model = make_small(embedding_size=4, hidden_size=5)
    texts = make_texts((3, 2))
    tokens = [torch.zeros(4), *model.embedding(texts[0, 0, :5]), torch.zeros(4)]
    hidden = torch.stack([model.convolution(torch.cat(tokens[start : start + 3])).relu() for start in range(5)])
    expected = model.classifier(torch.cat([hidden.mean(0), hidden.amax(0)]))
    torch.testing.assert_close(model(texts)[0], expected)


def test_small_model_of_pairs_compares_every_token_with_the_other_text():
    model = make_small(embedding_size=4, hidden_size=5, has_pairs=True)
    texts = make_texts((3, 2))
    tokens = list(model.embedding(texts[0, 0, :5]))
    means = []
    for own, other in ((tokens[:3], tokens[3:]), (tokens[3:], tokens[:3])):
        hidden = []
        for x in own:
            weights = [math.exp((x @ y).item()) for y in other]
            y = sum(weight * y for weight, y in zip(weights, other, strict=True)) / sum(weights)
            hidden.append(model.comparison(torch.cat([x, x - y, x * y])).relu())
        means.append(sum(hidden) / len(hidden))
    torch.testing.assert_close(model(texts)[0], model.classifier(torch.cat(means)))


def test_small_model_learns_whether_the_second_text_is_part_of_the_first():
    generator = torch.Generator().manual_seed(0)

    def draw(size):
        texts = torch.zeros(size, 2, 9, dtype=torch.int64)
        texts[:, 0] = torch.stack([torch.randperm(200, generator=generator)[:9] for _ in range(size)])
        texts[:, 1, 6:] = 1
        target = torch.randint(0, 2, (size,), generator=generator)
        texts[target == 1, 0, 6:] = texts[target == 1, 0, 1:4]
        return texts, target

    model = SmallTextClassifier(num_classes=2, num_tokens=200, has_pairs=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        texts, target = draw(32)
        optimizer.zero_grad()
        F.cross_entropy(model(texts), target).backward()
        optimizer.step()
    texts, target = draw(500)
    assert (model(texts).argmax(1) == target).float().mean() > 0.97


@pytest.mark.parametrize("has_pairs", [False, True])
def test_small_models_can_be_stacked(has_pairs):
    models = [make_small(has_pairs=has_pairs) for _ in range(3)]
    texts = make_texts((3, 4), (5, 2))
    logits = Ensemble(models)(texts)
    for c, model in enumerate(models):
        torch.testing.assert_close(logits[:, c], model(texts))


@pytest.mark.parametrize("has_pairs", [False, True])
def test_small_model_has_dropout_before_its_two_last_layers(has_pairs):
    model = make_small(has_pairs=has_pairs, dropout=0.5)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    texts = make_texts((3, 4), (5, 2))
    assert not torch.equal(model(texts), model(texts))
    assert torch.equal(model.eval()(texts), model(texts))


@pytest.mark.parametrize("make", [make_small, lambda: TransformersTextClassifier(3, **BERT)])
@pytest.mark.parametrize("texts", [torch.zeros(4, 2, 6), torch.zeros(4, 6, dtype=torch.int64)], ids=["float", "flat"])
def test_inputs_that_are_not_texts_are_refused(make, texts):
    with pytest.raises(ValueError, match=r"takes \(B, 2, L\) integers, token ids and segments .*; got torch\."):
        make()(texts)


@pytest.mark.parametrize(("num_segments", "uses_segments"), [(2, True), (1, False)])
def test_segments_are_passed_to_models_that_embed_two(num_segments, uses_segments):
    model = make_transformers("roberta", type_vocab_size=num_segments, **SIZES).eval()
    assert model.has_segments == uses_segments
    texts = make_texts((4, 3))
    moved = texts.clone()
    moved[0, 1, 3] = 1
    assert torch.equal(model(texts), model(moved)) != uses_segments


def test_the_vocabulary_of_a_random_model_is_that_of_the_data():
    model = TransformersTextClassifier(3, num_tokens=25, **BERT)
    assert model.model.get_input_embeddings().num_embeddings == 25
    larger = TransformersTextClassifier(
        3, pretrained=False, architecture="bert", config={**SIZES, "vocab_size": 30}, num_tokens=25
    )
    assert larger.model.get_input_embeddings().num_embeddings == 30


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    message = r"vocabulary of 31 tokens, but the model embeds 30\. Use the tokenizer"
    with pytest.raises(ValueError, match=message):
        TransformersTextClassifier(
            3, pretrained=False, architecture="bert", config={**SIZES, "vocab_size": 30}, num_tokens=31
        )
    TransformersTextClassifier(3, num_tokens=30, **BERT).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        TransformersTextClassifier(3, name=str(tmp_path), num_tokens=31)
    assert TransformersTextClassifier(3, name=str(tmp_path), num_tokens=29)(make_texts((3, 2))).shape == (1, 3)


def test_texts_too_long_for_the_model_are_refused_even_if_mostly_padding():
    model = make_transformers("bert", max_position_embeddings=11, **SIZES)
    with pytest.raises(ValueError, match="texts have up to 12 tokens, but the model has 11 positions"):
        model(make_texts((2, 2), length=12))
    assert model(make_texts((2, 2), length=11)).shape == (1, 3)


def test_dropout_sets_every_layer():
    plain = TransformersTextClassifier(3, **BERT)
    assert {module.p for module in plain.modules() if isinstance(module, nn.Dropout)} == {0.1}
    model = TransformersTextClassifier(3, dropout=0.25, **BERT)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    texts = make_texts((4, 3))
    assert not torch.equal(model(texts), model(texts))
    without = TransformersTextClassifier(3, dropout=0.0, **BERT)
    assert torch.equal(without(texts), without(texts))


def test_dropout_in_a_model_without_such_layers_is_refused():
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match=r"dropout=0\.1 needs dropout layers, but LlamaFor\w+ has none"):
        TransformersTextClassifier(3, pretrained=False, architecture="llama", config={**sizes, **heads}, dropout=0.1)


def test_an_architecture_that_is_not_for_text_is_refused():
    with pytest.raises(ValueError, match="unknown architecture for SequenceClassification 'resnet'"):
        TransformersTextClassifier(3, pretrained=False, architecture="resnet")
