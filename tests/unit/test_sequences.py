"""Losses of sequences, tokens and pixels: against plain loops, padding, gradients, faults."""

import math
from functools import partial

import pytest
import torch

from reducr.functional import TokenLoss, pixel_loss, sequence_loss, token_loss
from reference.tokens import pixel_losses, sequence_losses, token_losses

VOCABULARY = 7


def make(size=5, length=6, *, seed=0, dtype=torch.float64):
    """Logits and labels, some of which are ignored; the last sequence has no label at all."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, length, VOCABULARY, generator=generator, dtype=dtype) * 3
    labels = torch.randint(VOCABULARY, (size, length), generator=generator)
    labels[torch.rand(size, length, generator=generator) < 0.3] = -100
    labels[-1] = -100
    return logits, labels


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("ignore_index", [-100, 0])
def test_losses_are_those_of_plain_loops(is_causal, ignore_index):
    logits, labels = make()
    labels[labels == -100] = ignore_index
    options = {"ignore_index": ignore_index, "is_causal": is_causal}
    expected = token_losses(logits.tolist(), labels.tolist(), **options)
    losses = token_loss(logits, labels, **options)
    for row, places in zip(losses.tolist(), expected, strict=True):
        assert row == pytest.approx([places.get(place, 0.0) for place in range(len(row))], abs=1e-12)
    means = sequence_loss(logits, labels, **options)
    assert means.tolist() == pytest.approx(sequence_losses(logits.tolist(), labels.tolist(), **options))
    assert means[-1] == 0
    flat = TokenLoss(**options)(logits, labels)
    assert flat.tolist() == pytest.approx([loss for places in expected for loss in places.values()])


def test_padding_changes_no_loss():
    logits, labels = make()
    padded = torch.cat([logits, torch.full((5, 4, VOCABULARY), 50.0)], dim=1)
    padded_labels = torch.cat([labels, torch.full((5, 4), -100)], dim=1)
    assert torch.equal(sequence_loss(padded, padded_labels), sequence_loss(logits, labels))


def test_gradient_is_that_of_the_mean_of_the_means_and_zero_without_labels():
    logits, labels = make()
    logits.requires_grad_()
    sequence_loss(logits, labels).mean().backward()
    probabilities = torch.softmax(logits.detach(), dim=2)
    counts = (labels[:, 1:] != -100).sum(dim=1).clamp(min=1)
    for row, place in [(0, 1), (1, 3), (2, 4)]:
        label = int(labels[row, place + 1])
        expected = torch.zeros(VOCABULARY, dtype=torch.float64)
        if label != -100:
            expected = probabilities[row, place].clone()
            expected[label] -= 1
        torch.testing.assert_close(logits.grad[row, place], expected / counts[row] / len(labels))
    assert logits.grad[-1].abs().max() == 0
    assert logits.grad[:, -1].abs().max() == 0  # the last place predicts nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_scored_in_float32(dtype):
    logits, labels = make(dtype=dtype)
    losses = sequence_loss(logits, labels)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, sequence_loss(logits.float(), labels))


def test_pixels_are_those_of_plain_loops():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 5, 2, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (3, 5, 2), generator=generator)
    targets[0, :3] = 255
    targets[2] = 255
    loss = partial(pixel_loss, ignore_index=255)
    expected = pixel_losses(logits.tolist(), targets.tolist(), ignore_index=255)
    assert loss(logits, targets).tolist() == pytest.approx(expected)
    assert expected[2] == 0 < expected[0]


def test_a_uniform_prediction_has_log_of_the_vocabulary():
    losses = sequence_loss(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [3, -100, 1]]))
    assert losses.tolist() == pytest.approx([math.log(4)] * 2)


def test_keep_masks_the_labels_of_all_other_tokens():
    labels = torch.tensor([[5, 1, -100, 2], [3, -100, -100, -100], [4, 6, 0, -100]])
    before = labels.clone()
    kept = TokenLoss().keep(labels, torch.tensor([3, 0]))  # the candidates are 1, 2, 6 and 0
    assert kept.tolist() == [[-100, 1, -100, -100], [-100] * 4, [-100, -100, 0, -100]]
    assert torch.equal(labels, before)
    kept = TokenLoss(is_causal=False).keep(labels, torch.tensor([0, 3]))  # 5, 1, 2, 3, ...
    assert kept.tolist() == [[5, -100, -100, -100], [3, -100, -100, -100], [-100] * 4]


@pytest.mark.parametrize(
    ("logits", "labels", "text"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64), r"logits .* \(2, 3, 4\) and labels .*\(2, 4\)"),
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), r"logits \(B, T, V\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), "integer labels"),
        ({"logits": None}, torch.zeros(2, 3), "got logits dict"),
        (torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [0, 4, 0]]), r"labels must be in 0\.\.3; .* holds 4"),
    ],
)
def test_faults_say_what_was_expected(logits, labels, text):
    with pytest.raises(ValueError, match=text):
        sequence_loss(logits, labels)


def test_pixels_need_classes_along_axis_1():
    with pytest.raises(ValueError, match=r"classes along axis 1 .* \(2, 4, 4, 3\) and targets \(2, 4, 4\)"):
        pixel_loss(torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, dtype=torch.int64))


def test_options_of_a_token_loss_are_checked():
    with pytest.raises(ValueError, match="`ignore_index` must be an integer label; got None"):
        TokenLoss(ignore_index=None)
    with pytest.raises(ValueError, match="is_causal must be True or False"):
        TokenLoss(is_causal="yes")
