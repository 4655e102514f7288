"""Tasks other than classification: the loss, the reference and the rules give what plain loops give."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.functional import pixel_loss, sequence_loss
from reference import tasks
from reference.reducr_step import ReferenceOptions, reducr_step

NUM_GROUPS, FRACTION, SIZE, BATCH_SIZE = 3, 0.25, 64, 16


class Head(nn.Module):
    """A linear map of the last axis, or of axis 1 of images."""

    def __init__(self, num_inputs, num_outputs, *, seed, is_image=False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_inputs, num_outputs, generator=generator, dtype=torch.float64))
        self.is_image = is_image

    def forward(self, inputs):
        if self.is_image:
            return (inputs.movedim(1, -1) @ self.weight).movedim(-1, 1)
        return inputs @ self.weight


@dataclass(frozen=True)
class Task:
    """How to make inputs and targets, and the loss in torch and in plain loops."""

    loss: Any
    plain: Any
    input_shape: tuple[int, ...]
    num_outputs: int

    def data(self, size, *, seed):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(size, *self.input_shape, generator=generator, dtype=torch.float64)
        targets = self.targets(inputs, generator)
        return torch.arange(size), inputs, targets, torch.arange(size) % NUM_GROUPS

    def targets(self, inputs, generator):
        size, num_outputs = len(inputs), self.num_outputs
        if self.plain is tasks.multi_label:
            return torch.randint(2, (size, num_outputs), generator=generator).double()
        if self.plain is tasks.soft_labels:
            return torch.rand(size, num_outputs, generator=generator, dtype=torch.float64).softmax(dim=1)
        if self.plain is tasks.regression:
            return torch.randn(size, num_outputs, generator=generator, dtype=torch.float64)
        if self.plain is tasks.segmentation:
            targets = torch.randint(num_outputs, (size, *self.input_shape[1:]), generator=generator)
            return targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.2, 255)
        targets = torch.randint(num_outputs, (size, self.input_shape[0]), generator=generator)
        return targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.2, -100)

    def model(self, seed):
        is_image = self.plain is tasks.segmentation
        num_inputs = self.input_shape[0] if is_image else self.input_shape[-1]
        return Head(num_inputs, self.num_outputs, seed=seed, is_image=is_image)

    @torch.no_grad()
    def losses(self, model, inputs, targets):
        return self.plain(model(inputs).tolist(), targets.tolist())


TASKS = {
    "multi_label": Task(
        lambda output, y: F.binary_cross_entropy_with_logits(output, y, reduction="none").mean(dim=1),
        tasks.multi_label, (4,), 5,
    ),
    "soft_labels": Task(partial(F.cross_entropy, reduction="none"), tasks.soft_labels, (4,), NUM_GROUPS),
    "regression": Task(lambda output, y: (output - y).square().mean(dim=1), tasks.regression, (4,), 2),
    "segmentation": Task(partial(pixel_loss, ignore_index=255), tasks.segmentation, (3, 4, 2), 5),
    "tagging": Task(partial(sequence_loss, is_causal=False), tasks.tagging, (6, 4), 5),
}  # fmt: skip


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def batches_of(data, *, batch_size=BATCH_SIZE):
    return DataLoader(TensorDataset(*data), batch_size=batch_size)


def group_means(task, model, data):
    losses = task.losses(model, data[1], data[2])
    groups = data[3].tolist()
    return [
        sum(loss for loss, own in zip(losses, groups, strict=True) if own == group) / groups.count(group)
        for group in range(NUM_GROUPS)
    ]


def make_loader(task, rule, reference, **options):
    model, holdout = task.model(0), task.data(15, seed=2)
    steps = {"step_size": 0.01} if rule in ("reducr", "priority_sampling") else {}
    selector = reducr.make_selector(rule, num_groups=NUM_GROUPS, **steps)
    if selector.needs_group_holdout_loss:
        options |= {"holdout": list(batches_of(holdout, batch_size=4)), "refresh_steps": 2}
    return reducr.SelectiveLoader(
        batches_of(task.data(SIZE, seed=1)), model, selector, reference, FRACTION, loss=task.loss, **options
    ), model


def step_on(model, task, inputs, targets):
    model.zero_grad()
    task.loss(model(inputs), targets).mean().backward()
    with torch.no_grad():
        model.weight.sub_(0.1 * model.weight.grad)


def best(scores, count):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def test_rho_loss_selects_the_largest_excess_losses(task):
    """One reference model without a loss of its own, which takes that of the loop."""
    reference_model = task.model(9)
    loader, model = make_loader(task, "rho_loss", reducr.Reference(reference_model))
    candidates = batches_of(task.data(SIZE, seed=1))
    for (_, all_inputs, all_targets, _), (index, inputs, targets, groups) in zip(candidates, loader, strict=True):
        irreducible = task.losses(reference_model, all_inputs, all_targets)
        excess = [a - b for a, b in zip(task.losses(model, all_inputs, all_targets), irreducible, strict=True)]
        assert (index % BATCH_SIZE).tolist() == best(excess, 4)
        assert torch.equal(groups, index % NUM_GROUPS)
        step_on(model, task, inputs, targets)


def test_reducr_with_one_reference_model_for_each_group(task):
    models = [task.model(seed) for seed in (7, 8, 9)]
    loader, model = make_loader(task, "reducr", reducr.Reference(models))
    holdout = task.data(15, seed=2)
    means, cumulative, candidates = (
        group_means(task, model, holdout),
        [0.0] * NUM_GROUPS,
        batches_of(task.data(SIZE, seed=1)),
    )
    for step, (everything, (index, inputs, targets, _)) in enumerate(zip(candidates, loader, strict=True), start=1):
        columns = [task.losses(reference, *everything[1:3]) for reference in models]
        expected = reducr_step(
            task.losses(model, *everything[1:3]),
            list(zip(*columns, strict=True)),
            means,
            cumulative,
            num_selected=4,
            options=ReferenceOptions(step_size=0.01),
        )
        assert (index % BATCH_SIZE).tolist() == expected.picks
        step_on(model, task, inputs, targets)
        cumulative = expected.cumulative_payoff
        if step % 2 == 0:
            means = group_means(task, model, holdout)
    assert loader.downsampler.selector.cumulative_payoff.tolist() == pytest.approx(cumulative)


def test_reducr_refuses_one_reference_model_where_groups_are_attributes(task):
    loader, _ = make_loader(task, "reducr", reducr.Reference(task.model(9)))
    with pytest.raises(ValueError, match=r"one (reference )?model per group.*'priority_sampling'"):
        next(iter(loader))


def test_priority_sampling_draws_the_most_plausible_targets_of_every_attribute(task):
    """At a low temperature, and with equal quotas: the two lowest reference losses of each of the three groups."""
    model, reference_model, data, holdout = task.model(0), task.model(9), task.data(48, seed=1), task.data(15, seed=2)
    loader = reducr.SelectiveLoader(
        batches_of(data, batch_size=24),
        model,
        reducr.make_selector(
            "priority_sampling", num_groups=NUM_GROUPS, uniform_share=1.0, irreducible_temperature=1e-4
        ),
        reducr.Reference(reference_model),
        FRACTION,
        loss=task.loss,
        holdout=list(batches_of(holdout, batch_size=4)),
        refresh_steps=2,
    )
    losses = task.losses(reference_model, *data[1:3])
    for number, (index, _, _, _) in enumerate(loader):
        rows = range(24 * number, 24 * number + 24)
        expected = [
            sorted((i for i in rows if i % NUM_GROUPS == group), key=losses.__getitem__)[:2] for group in range(3)
        ]
        assert set(index.tolist()) == {i for picks in expected for i in picks}
    held = loader.downsampler.selector.group_holdout_loss.tolist()
    assert held == pytest.approx(group_means(task, model, holdout))


def test_a_table_gives_the_selection_of_the_live_reference(task):
    data = TensorDataset(*task.data(SIZE, seed=1))
    picks = []
    for make in (lambda reference: reference, lambda reference: reference.tabulate(data)):
        loader, model = make_loader(task, "rho_loss", make(reducr.Reference(task.model(9), loss=task.loss)))
        indices = []
        for index, inputs, targets, _ in loader:
            indices += index.tolist()
            step_on(model, task, inputs, targets)
        picks.append(indices)
    assert picks[0] == picks[1]


def test_one_reference_serves_soft_labels_whose_groups_are_their_classes():
    """r_c is the loss of the logits z + log(g) e_c; groups are the most probable classes."""
    task = TASKS["soft_labels"]
    _, inputs, targets, _ = data = task.data(SIZE, seed=1)
    groups = targets.argmax(dim=1)
    reference_model, model = task.model(9), task.model(0)
    selector = reducr.make_selector("reducr", num_groups=NUM_GROUPS)
    selector.set_group_holdout_loss(torch.ones(NUM_GROUPS))
    core = reducr.Downsampler(selector, reducr.Reference(reference_model), fraction=FRACTION, loss=task.loss)
    core.prepare(model)
    core.select((*data[:3], groups), model)
    with torch.no_grad():
        logits = reference_model(inputs)
    shift = torch.eye(NUM_GROUPS, dtype=torch.float64) * torch.tensor(10.0, dtype=torch.float64).log()
    columns = [tasks.soft_labels((logits + row).tolist(), targets.tolist()) for row in shift]
    expected = reducr_step(
        task.losses(model, inputs, targets),
        list(zip(*columns, strict=True)),
        [1.0] * NUM_GROUPS,
        [0.0] * NUM_GROUPS,
        num_selected=int(FRACTION * SIZE),
        options=ReferenceOptions(step_size=1e-4),
    )
    assert core.selection.positions.tolist() == expected.picks
    assert core.selection.payoff.tolist() == pytest.approx(expected.payoff)


def test_mixed_candidates_are_scored_as_they_are_trained_on():
    """mixup in the collation: the loop trains on the mixed inputs and soft labels that were scored."""
    task = TASKS["soft_labels"]
    generator = torch.Generator().manual_seed(5)
    classes = torch.arange(SIZE) % NUM_GROUPS

    def mixup(samples):
        index, inputs, _, groups = (torch.stack(part) for part in zip(*samples, strict=True))
        share = torch.rand(len(index), 1, generator=generator, dtype=torch.float64)
        other = torch.randperm(len(index), generator=generator)
        labels = F.one_hot(classes[index], NUM_GROUPS).double()
        return {
            "idx": index,
            "input": share * inputs + (1 - share) * inputs[other],
            "labels": share * labels + (1 - share) * labels[other],
            "group": groups,
        }

    loader = DataLoader(TensorDataset(*task.data(SIZE, seed=1)), batch_size=BATCH_SIZE, collate_fn=mixup)
    state = generator.get_state()
    mixed = list(loader)
    generator.set_state(state)
    model, reference_model = task.model(0), task.model(9)
    selective = reducr.SelectiveLoader(
        loader,
        model,
        reducr.make_selector("rho_loss", num_groups=NUM_GROUPS),
        reducr.Reference(reference_model),
        FRACTION,
        loss=task.loss,
    )
    for candidates, batch in zip(mixed, selective, strict=True):
        pair = candidates["input"], candidates["labels"]
        excess = [a - b for a, b in zip(task.losses(model, *pair), task.losses(reference_model, *pair), strict=True)]
        picks = best(excess, 4)
        assert torch.equal(batch["input"], candidates["input"][picks])
        assert torch.equal(batch["labels"], candidates["labels"][picks])
        step_on(model, task, batch["input"], batch["labels"])


def test_group_dro_weights_any_loss_by_attribute(task):
    loader, model = make_loader(task, "group_dro", None, weights_examples=True)
    for index, inputs, targets, groups in loader:
        losses = task.loss(model(inputs), targets)
        assert losses.shape == loader.example_weights.shape == index.shape
        weights = {int(group): weight for group, weight in zip(groups, loader.example_weights.tolist(), strict=True)}
        assert loader.example_weights.tolist() == [weights[group] for group in groups.tolist()]
        step_on(model, task, inputs, targets)
    assert len(set(loader.downsampler.selector.group_weights.tolist())) == NUM_GROUPS
