"""Scoring in chunks: what the models see at a time, what stays the same, and what batch norms make of it."""

import pytest
import torch
from torch import nn

import reducr
from reducr.batch import Batch
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits, PlainIrreducibleLoss
from reducr.scoring import Scoring, score_candidates, scorer

SIZE, NUM_CLASSES = 23, 3


class Watched(nn.Module):
    """A model that notes how many examples it is called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes = model, []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        return self.model(inputs)


def make_model(seed=0, *, layers=()):
    torch.manual_seed(seed)
    return Watched(nn.Sequential(nn.Linear(4, 8), *layers, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, NUM_CLASSES)))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(NUM_CLASSES, (SIZE,), generator=generator)
    return Batch(torch.arange(SIZE), torch.randn(SIZE, 4, generator=generator), target, target)


def irreducible_of(selector, reference):
    is_plain = "irreducible_loss" in selector.needs
    return (PlainIrreducibleLoss if is_plain else AdjustedIrreducibleLoss)(LiveLogits(reference))


@pytest.mark.parametrize("name", reducr.SELECTORS)
def test_in_eval_mode_every_rule_sees_the_same_numbers(batch, name):
    options = {"group_weights": [1.0, 2.0, 1.0]} if name == "fixed_weights" else {}
    selector = reducr.make_selector(name, num_groups=NUM_CLASSES, **options)
    model, reference = make_model(), make_model(1)
    whole, parts = (
        score_candidates(
            model, batch, selector, irreducible_of(selector, reference), scoring=Scoring(mode="eval", batch_size=size)
        ).given()
        for size in (None, 5)
    )
    assert whole.keys() == parts.keys()
    for field, values in whole.items():
        if selector.num_dropout_samples and field == "logits":
            assert parts[field].shape == values.shape  # every chunk draws its own dropout
        else:
            torch.testing.assert_close(parts[field], values, rtol=1e-5, atol=1e-6)
    runs_model = not {"model_loss", "logits"}.isdisjoint(selector.needs)
    runs_reference = any("irreducible_loss" in need for need in selector.needs)
    sizes = [4, 5, 4, 5, 5]  # as few chunks as there can be, of equal size as far as possible
    if runs_model:  # the dropout samples of a chunk come one after another
        assert set(model.sizes) <= {SIZE, *sizes}
        assert selector.num_dropout_samples or sorted(model.sizes[-5:]) == sorted(sizes)
    else:
        assert model.sizes == []
    assert sorted(reference.sizes[-5:]) == sorted(sizes) if runs_reference else reference.sizes == []


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(23, [23]), (22, [11, 12]), (100, [23]), (1, [1] * 23), (8, [7, 8, 8])]
)
def test_sizes_of_chunks(batch, batch_size, sizes):
    model, selector = make_model(), reducr.make_selector("train_loss", num_groups=NUM_CLASSES)
    score_candidates(model, batch, selector, scoring=Scoring(batch_size=batch_size))
    assert model.sizes == sizes


def test_losses_of_many_groups_are_computed_from_chunks_too(batch, monkeypatch):
    """Those that are computed some rows at a time."""
    monkeypatch.setattr(scorer, "_LAZY_ABOVE", 1)
    selector, reference = reducr.make_selector("reducr", num_groups=NUM_CLASSES), make_model(1)
    whole, parts = (
        score_candidates(
            make_model(), batch, selector, irreducible_of(selector, reference), scoring=Scoring(batch_size=size)
        ).group_losses
        for size in (None, 6)
    )
    torch.testing.assert_close(parts, whole)
    assert reference.sizes == [23, 5, 6, 6, 6]


@pytest.mark.parametrize("mode", ["train", "train_frozen_statistics"])
def test_batch_norms_see_one_chunk_at_a_time_in_the_train_modes(batch, mode):
    """As the docstring of ``Scoring`` says: scores are those of the chunks, and so are the running statistics."""
    selector = reducr.make_selector("train_loss", num_groups=NUM_CLASSES)
    model, twin = (make_model(layers=[nn.BatchNorm1d(8)]).train() for _ in range(2))
    for one in (model, twin):
        one.model[3].p = 0.0
    candidates = score_candidates(model, batch, selector, scoring=Scoring(mode=mode, batch_size=12))
    with torch.no_grad():
        losses = [
            per_example_cross_entropy(twin(batch.input[part]), batch.target[part])
            for part in (slice(0, 11), slice(11, 23))
        ]
    assert torch.equal(candidates.model_loss, torch.cat(losses))
    statistics = model.model[1].running_mean
    if mode == "train":
        assert torch.equal(statistics, twin.model[1].running_mean)
        assert int(model.model[1].num_batches_tracked) == 2
    else:
        assert torch.equal(statistics, torch.zeros(8))


def test_a_budget_scores_its_candidates_in_chunks(batch):
    model, selector = make_model(), reducr.make_selector("train_loss", num_groups=NUM_CLASSES)
    core = reducr.Downsampler(selector, fraction=0.1, scoring=Scoring(mode="eval", budget=0.5, batch_size=4))
    core.select(batch, model)
    assert model.sizes == [3, 4, 4]
