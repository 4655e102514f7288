"""Errors of a user's model or loss say with what it was called; a loss that mixes examples is warned of."""

import re
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reducr
from reducr import BatchSpec, Downsampler
from reducr.functional import TokenLoss, sequence_loss

SIZE = 10


def batch_of(*, is_column=False):
    inputs = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
    targets = inputs.sum(dim=1, keepdim=True)
    return inputs, targets if is_column else targets.flatten()


def mean_square(outputs, targets):
    return (outputs - targets).square().flatten(1).mean(dim=1)


def in_batch(outputs, targets):
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


def normalised(outputs, targets):
    losses = (outputs.flatten() - targets.flatten()).square()
    return losses / losses.sum()


@pytest.mark.parametrize("loss", [mean_square, in_batch, normalised, partial(in_batch)])
@pytest.mark.parametrize("place", ["candidates", "holdout", "fit_reference"])
def test_a_loss_that_mixes_examples_is_warned_of_once(loss, place):
    own = partial(loss)  # each loss is told of once
    batch, model = batch_of(), nn.Linear(3, 1)
    message = (
        "`loss(output, target)` gives examples another value when the others of their batch are left out; it was "
        "called with the output torch.float32 ("
    )
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        if place == "fit_reference":
            reducr.fit_reference(model, [batch], loss=own, num_epochs=2, num_folds=0)
        else:
            core = Downsampler("train_loss", loss=own, holdout=[batch] if place == "holdout" else None)
            core.prepare(model)
            for _ in range(2):
                core.select(batch, model)
    assert len([warning for warning in record if message in str(warning.message)]) == 1


def smoothed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def noisy(outputs, targets):
    return smoothed(outputs, targets) + torch.rand(()) * 1e-6


def of_whole_batch(outputs, targets):
    assert len(outputs) == SIZE
    return smoothed(outputs, targets)


@pytest.mark.parametrize("loss", [smoothed, noisy, of_whole_batch, nn.CrossEntropyLoss(reduction="none")])
def test_other_losses_are_not_and_draw_nothing(loss):
    inputs, _ = batch_of()
    model, targets = nn.Linear(3, 2), torch.arange(SIZE) % 2
    drawn = []
    for is_first in (True, False):
        core = Downsampler("train_loss", loss=loss)
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            core.select((inputs, targets), model)
        drawn.append(torch.rand(()).item())
        assert is_first or drawn[0] == drawn[1]


def test_the_losses_of_tokens_are_not_judged():
    labels = torch.arange(12).reshape(2, 6) % 4
    batch = {"input": labels, "labels": labels, "group": torch.zeros(2, dtype=torch.long)}
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        selected = Downsampler("train_loss", loss=TokenLoss(), fraction=0.5).select(batch, nn.Embedding(4, 4))
    assert record == []
    assert int((selected["labels"] != -100).sum()) == 5  # half of the ten tokens that have a label


@pytest.mark.parametrize(
    ("batch", "spec", "given"),
    [
        ((torch.arange(4), torch.zeros(4, 3)), None, "torch.int64 (4,)"),
        ((torch.zeros(4, 5), torch.arange(4)), None, "torch.float32 (4, 5)"),
        (
            ((torch.zeros(4, 3), torch.ones(4, 3)), torch.arange(4)),
            None,
            "a tuple of torch.float32 (4, 3), torch.float32 (4, 3)",
        ),
        ((["a", "b", "c", "d"], torch.arange(4)), None, "a list of 4"),
        (
            {"x": torch.zeros(4, 3), "y": torch.arange(4)},
            BatchSpec(input=lambda batch: {"input": batch["y"]}, target="y"),
            "a dict of input: torch.int64 (4,)",
        ),
    ],
)
def test_an_error_of_the_model_says_what_it_was_called_with(batch, spec, given):
    with pytest.raises((RuntimeError, TypeError)) as fault:
        Downsampler("train_loss", spec=spec).select(batch, nn.Linear(3, 2))
    (note,) = fault.value.__notes__
    assert note == (
        f"reducr called the model with the input that it found in the batch, {given}. If the model takes something "
        "else, say where it is with `spec=reducr.BatchSpec(input=..., target=...)`."
    )


def test_an_error_of_the_loss_says_what_it_was_called_with():
    core = Downsampler("train_loss", loss=nn.BCEWithLogitsLoss(reduction="none"))
    with pytest.raises(ValueError, match="Target size") as fault:
        core.select(batch_of(), nn.Linear(3, 1))
    (note,) = fault.value.__notes__
    assert note == (
        "reducr called `loss(output, target)` with the output torch.float32 (10, 1) and the target torch.float32 (10,) "
        "of all examples of a batch. It must return one value per example."
    )


def test_losses_of_a_broadcast_are_not_to_be_averaged():
    message = (
        "got torch.float32 (10, 10). The output torch.float32 (10, 1) and the target torch.float32 (10,) were "
        "broadcast: give them the same shape"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("train_loss", loss=lambda output, target: (output - target).square()).select(
            batch_of(), nn.Linear(3, 1)
        )


class OutOfMemory(nn.Linear):
    def forward(self, inputs):
        raise torch.cuda.OutOfMemoryError


def test_a_lack_of_memory_is_no_fault_of_the_batch():
    with pytest.raises(torch.cuda.OutOfMemoryError) as fault:
        Downsampler("train_loss").select(batch_of(), OutOfMemory(3, 1))
    assert not hasattr(fault.value, "__notes__")


@pytest.mark.parametrize(
    ("outputs", "advice"), [(50, "`reducr.functional.sequence_loss` for a language model"), (1, "")]
)
def test_a_reference_that_needs_a_loss_says_which(outputs, advice):
    labels = torch.arange(24).reshape(4, 6) % 5
    model = nn.Embedding(5, outputs) if outputs > 1 else nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
    batch = (labels, labels) if outputs > 1 else (labels.float(), labels[:, 0])
    with pytest.raises(ValueError, match=r"^The reference model must return floating-point logits") as fault:
        reducr.fit_reference(model, [batch], num_folds=0)
    assert advice in str(fault.value)
    if outputs > 1:
        reducr.fit_reference(model, [batch], num_folds=0, num_epochs=1, loss=sequence_loss)


def test_an_option_of_another_rule_says_whose_it_is():
    message = "The rule 'rho_loss' has no option 'step_size'; "
    with pytest.raises(ValueError, match=re.escape(message)) as fault:
        Downsampler("rho_loss", step_size=1e-3)
    assert "'reducr'" in str(fault.value)
    assert "'uniform'" not in str(fault.value)


def test_examples_without_a_label():
    message = "targets must be in 0..1; position 0 holds -100 (1 such in all). Leave out examples without a label"
    targets = torch.arange(SIZE) % 2
    targets[0] = -100
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("train_loss").select((batch_of()[0], targets), nn.Linear(3, 2))


def test_groups_that_are_no_integers():
    message = "`spec=reducr.BatchSpec(input=..., target=..., group=...)`; a function makes them"
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("class_balanced", holdout=[batch_of()])
