"""How much to believe the label of every training example, and how strongly to filter by it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count
from reducr._internal.rng import same_random_state
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, model_output
from reducr.batch.model_output import logits_of
from reducr.batch.nested import send_to_device
from reducr.irreducible.model_table import ModelTable, tabulated
from reducr.irreducible.reading import loader_of
from reducr.irreducible.table import IrreducibleTable
from reducr.scoring import device_of, scoring_pass, without_wrappers
from reducr.selectors import Selector
from reducr.training.probe import GroupLosses, Part, fit_probe, group_losses, last_layer_inputs, paired_gain

_SMALLEST = 1e-6
_MOST_DROPPED = 0.9


@dataclass(frozen=True)
class Filter:
    """A way to turn the beliefs in the labels into weights of the examples.

    Args:
        power: weights are ``p ** power``, with p the probability of the label.
        dropped: of every class so many times as many examples get no weight as the model disagrees with, the ones
            whose labels it believes least; 0 for none.
    """

    power: float = 0.0
    dropped: float = 0.0

    def weights(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return (N,) weights in [0, 1], from probabilities (N, C) and labels (N,)."""
        belief = probabilities.gather(1, targets[:, None])[:, 0].double()
        weights = belief.clamp(min=_SMALLEST) ** self.power
        if not self.dropped:
            return weights
        disagrees = probabilities.argmax(dim=1) != targets
        for label in torch.bincount(targets).nonzero().flatten().tolist():
            members = torch.nonzero(targets == label).flatten()
            wanted = self.dropped * float(disagrees[members].sum())
            num_dropped = int(min(wanted, _MOST_DROPPED * len(members)))
            weights[members[belief[members].argsort(stable=True)[:num_dropped]]] = 0.0
        return weights


FILTERS: Mapping[str, Filter] = {
    "none": Filter(),
    "belief^0.25": Filter(power=0.25),
    "belief^0.5": Filter(power=0.5),
    "belief": Filter(power=1.0),
    "belief^2": Filter(power=2.0),
    "drop": Filter(dropped=1.0),
    "drop 1.5": Filter(dropped=1.5),
}
"""The filters that are tried, from none to the strongest of each kind."""


@dataclass(frozen=True)
class Belief:
    """Weights by which the examples of a class are drawn, and how their strength was chosen.

    A loop with ``priority_sampling`` takes it as ``irreducible``: within a group an example is drawn in proportion to
    its weight. Its rule needs ``irreducible_temperature=1``, because the strength is chosen already.

    Args:
        weights: (N,) float64 in [0, 1], in the order of the data set; 0 for examples that are not drawn.
        probabilities: (N,) float64, of the label according to the reference model.
        likely: (N,) int64, the label that the reference model finds most likely.
        filter: key of ``FILTERS``.
        losses: loss of the probe on the held-back examples with each filter, the mean over groups, in nats.
        table: reads -log(weight) by the index of an example.
    """

    weights: Tensor
    probabilities: Tensor
    likely: Tensor
    filter: str
    losses: Mapping[str, float]
    table: ModelTable

    def lookup(self, batch: Batch) -> Tensor:
        """Return ``-log(weight)`` (B,) of the examples of a batch; at most 1,000 where the weight is 0."""
        return self.table.rows(batch)

    def bind(self, rule: Selector, *, loss: PerExampleLoss | None = None) -> Belief:
        """Return this belief, for a rule that draws by it.

        Raises:
            ValueError: for a rule that does not read one irreducible loss per example and nothing of the model, or one
                with a temperature that would change the weights.
        """
        if rule.reads_model or "irreducible_loss" not in rule.needs:
            raise ValueError(
                f"{rule.name!r} does not draw by belief. Use the rule 'priority_sampling', or pass "
                "reducr.Reference(model) for the irreducible losses of this rule."
            )
        temperature = getattr(rule, "irreducible_temperature", 1.0)
        if temperature != 1.0:
            raise ValueError(
                f"A belief has chosen the strength of its filter, and irreducible_temperature={temperature} of "
                f"{rule.name!r} would change it. Pass irreducible_temperature=1."
            )
        return self

    def updated(
        self, model: nn.Module, data: Any, *, batch_size: int | None = None, spec: BatchSpec | None = None
    ) -> Belief:
        """Return the same filter with the beliefs of another model, such as the target model half-way.

        Args:
            model: returns logits (B, C).
            data: the same data set.
            batch_size: examples at a time; None for that of a DataLoader, else 256.
            spec: where the parts of a batch are.
        """
        table, probabilities = _tabulated(model, data, batch_size=batch_size, spec=spec)
        return _belief(table, probabilities, self.filter, self.losses)

    def suspects(self, num: int) -> Tensor:
        """Return the positions (num,) of the examples whose labels are believed least, least first.

        These are examples that the model disagrees with, so fewer may come.
        """
        check_count("num", num)
        assert self.table.targets is not None
        disagrees = torch.nonzero(self.table.targets.ne(self.likely)).flatten()
        return disagrees[self.probabilities[disagrees].argsort(stable=True)[:num]]

    def __str__(self) -> str:
        kept = float((self.weights > 0).double().mean())
        mean = float(self.weights.mean() / self.weights.max())
        if self.filter == "none":
            return f"No filter: held-back examples show no gain by any (probe loss {self.losses['none']:.3f})."
        return (
            f"Filter {self.filter!r}: probe loss {self.losses['none']:.3f} -> {self.losses[self.filter]:.3f} on "
            f"held-back examples, {100 * kept:.0f} % of the examples kept, mean weight {mean:.2f}."
        )


def fit_belief(
    reference: nn.Module,
    data: Any,
    held_back: Iterable[Any],
    *,
    spec: BatchSpec | None = None,
    batch_size: int | None = None,
    num_probed: int = 2000,
    seed: int = 0,
) -> Belief:
    """Choose how strongly to filter training examples by the reference model's belief in their labels.

    How much filtering helps depends on how many labels are wrong, on who made the errors, and on how good the reference
    model is; too much of it leaves out the hard examples. So every filter of ``FILTERS`` is tried on a probe: logistic
    regression on the inputs of the reference model's last layer, for ``num_probed`` training examples weighted by the
    filter, groups alike. The filter is the one with the smallest loss on the clean held-back examples (mean over
    groups, logits scaled to fit), or none if that gains no more than one standard error over no filter.

    Args:
        reference: trained on the other clean examples; returns logits (B, C). Called in eval mode, and left as it was.
        data: the training data, map-style, or a DataLoader of it; without random augmentation.
        held_back: batches of clean examples that ``reference`` was not trained on. About 50 of each group are enough.
        spec: where the parts of a batch are; None for the usual places.
        batch_size: examples at a time; None for that of a DataLoader, else 256.
        num_probed: examples that the probe is trained on.
        seed: of the choice of these examples.

    Raises:
        TypeError: for a stream.
        ValueError: for outputs that are not logits (B, C), targets that are not classes, or no held-back examples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> random = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(600, 4, generator=random)
        >>> labels = inputs.argmax(dim=1)
        >>> noisy = torch.where(torch.rand(500, generator=random) < 0.4, labels[:500].flip(0), labels[:500])
        >>> reference = nn.Linear(4, 4)
        >>> _ = reference.weight.data.copy_(3 * torch.eye(4)), reference.bias.data.zero_()
        >>> belief = fit_belief(reference, TensorDataset(inputs[:500], noisy), [(inputs[500:], labels[500:])])
        >>> belief.filter != "none", bool((belief.weights[noisy != labels[:500]].mean() < 0.2 * belief.weights.max()))
        (True, True)

    Source: this package; compared with fixed filters in docs/research.md.
    """
    check_count("num_probed", num_probed)
    table, probabilities = _tabulated(reference, data, batch_size=batch_size, spec=spec)
    assert table.targets is not None
    chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:num_probed]
    with same_random_state():
        sample = _part(reference, loader_of(data, batch_size=batch_size, positions=chosen.tolist()), spec)
        judged = _part(reference, held_back, spec)
    _check_judged(judged, probabilities.shape[1])
    losses = _filter_losses(sample, judged, chosen, probabilities, table.targets)
    means = {name: float(values.mean) for name, values in losses.items()}
    best = min(means, key=means.__getitem__)
    gain, error = paired_gain(losses["none"], losses[best])
    return _belief(table, probabilities, best if gain > error else "none", means)


def _filter_losses(
    sample: Part, judged: Part, chosen: Tensor, probabilities: Tensor, targets: Tensor
) -> dict[str, GroupLosses]:
    """The losses of the probe with each filter.

    Args:
        sample: the training examples of the probe.
        judged: the held-back examples.
        chosen: positions of the former in the data set.
        probabilities: (N, C) of all training examples.
        targets: (N,) of all training examples.
    """
    num_groups = int(max(sample.groups.max(), judged.groups.max())) + 1
    sample, judged = sample.standardised(judged)
    losses: dict[str, GroupLosses] = {}
    head = None
    for name, candidate in FILTERS.items():
        weights = candidate.weights(probabilities, targets)[chosen]
        mass = torch.bincount(sample.groups, weights=weights, minlength=num_groups)
        balanced = weights / mass.clamp(min=_SMALLEST)[sample.groups]
        head = fit_probe(sample, balanced, num_classes=probabilities.shape[1], start=head)
        losses[name] = group_losses(head, judged)
    return losses


def _belief(table: ModelTable, probabilities: Tensor, name: str, losses: Mapping[str, float]) -> Belief:
    targets = table.targets
    assert targets is not None
    weights = FILTERS[name].weights(probabilities, targets)
    own = copy.copy(table)
    own.table = IrreducibleTable((-weights.log()).clamp(max=1000.0).float().numpy(), kind="loss")
    believed = probabilities.gather(1, targets[:, None])[:, 0].double()
    return Belief(weights, believed, probabilities.argmax(dim=1), name, losses, own)


def _tabulated(
    model: nn.Module, data: Any, *, batch_size: int | None, spec: BatchSpec | None
) -> tuple[ModelTable, Tensor]:
    """Return the rows by index, and the probabilities (N, C) of the classes."""
    device, module = device_of(model), without_wrappers(model)

    def rows(batch: Batch) -> tuple[str, Tensor]:
        return "logits", _checked_logits(module, batch).float().cpu()

    with scoring_pass(module, "eval"), torch.no_grad(), same_random_state():
        table = tabulated(rows, data, batch_size=batch_size, spec=spec, device=device)
    if table.targets is None:
        raise ValueError("A belief is in a class label, and the targets of this data set are not integers (B,).")
    logits = torch.from_numpy(table.table.values)
    if int(table.targets.min()) < 0 or int(table.targets.max()) >= logits.shape[1]:
        raise ValueError(
            f"Targets must be in [0, {logits.shape[1]}), the classes of the reference model; got "
            f"{int(table.targets.min())} to {int(table.targets.max())}."
        )
    return table, logits.softmax(dim=1)


def _checked_logits(module: nn.Module, batch: Batch) -> Tensor:
    logits = logits_of(model_output(module, batch.input))
    size = len(batch.target)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != size or not logits.is_floating_point():
        kind = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"A belief needs a model that returns logits of shape (B, C) with B = {size}; got {kind}.")
    if logits.shape[1] < 2:
        raise ValueError("A belief needs a logit for each class; this model returns one logit. Give it two outputs.")
    return logits


@torch.no_grad()
def _part(model: nn.Module, batches: Iterable[Any], spec: BatchSpec | None) -> Part:
    """The inputs of the last layer, targets and groups of all examples."""
    device, module, read = device_of(model), without_wrappers(model), BatchReader(spec)
    features, targets, groups = [], [], []
    with scoring_pass(module, "eval"):
        for batch in map(read, batches):
            run = partial(_checked_logits, batch=send_to_device(batch, device))
            features.append(last_layer_inputs(module, run).float().cpu())
            targets.append(batch.target.cpu().long())
            groups.append(batch.group.cpu().long())
    if not features:
        raise ValueError("There are no held-back examples to choose a filter by. Pass at least one batch.")
    return Part(torch.cat(features), torch.cat(targets), torch.cat(groups))


def _check_judged(judged: Part, num_classes: int) -> None:
    if int(judged.targets.min()) < 0 or int(judged.targets.max()) >= num_classes:
        raise ValueError(
            f"Targets of the held-back examples must be in [0, {num_classes}); got {int(judged.targets.min())} to "
            f"{int(judged.targets.max())}."
        )
