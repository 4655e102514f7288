"""How much to believe the label of every training example, and how strongly to filter by it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count, check_state_keys
from reducr._internal.rng import same_random_state
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, model_output
from reducr.batch.nested import send_to_device
from reducr.functional.outputs import checked_logits
from reducr.irreducible.model_table import ModelTable, tabulated
from reducr.irreducible.reading import dataset_of, loader_of
from reducr.irreducible.table import IrreducibleTable
from reducr.scoring import device_of, scoring_pass, without_wrappers
from reducr.selectors import Selector
from reducr.training.probe import GroupLosses, Part, fit_probe, group_losses, last_layer_inputs, paired_gain

_SMALLEST = 1e-6
_LARGEST = 1000.0
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
DEFAULT = "belief^0.5"
"""Where nothing can be told: that of ``priority_sampling`` with its default temperature."""
FEW_EXAMPLES = 10
"""Held-back examples of the smallest group below which the probe cannot tell small gains."""


class Belief:
    """How much to believe the label of each training example, and how strongly to filter by it.

    A loop with ``priority_sampling`` takes it as ``irreducible``: within a group an example is drawn in proportion to
    its weight. All weights are 1 until ``fit(model)``, which may be called before training with a reference model, and
    during training with the model itself. The loop's rule needs ``irreducible_temperature=1``, because ``fit`` chooses
    the strength.

    How much filtering helps depends on how many labels are wrong, on who made the errors, and on how good the model is;
    too much of it leaves out the hard examples. So ``fit`` tries every filter of ``FILTERS`` on a probe: logistic
    regression on the inputs of the model's last layer, for ``num_probed`` training examples weighted by the filter,
    groups alike. It takes the filter with the smallest loss on the clean held-back examples (mean over groups, logits
    scaled to fit), or none if that gains no more than one standard error over no filter. With fewer than ten held-back
    examples of a group, ``belief^0.5`` takes the place of none.

    Args:
        data: the training data, map-style, or a DataLoader of it; without random augmentation. Training reads weights
            by the index of an example (``reducr.indexed``), or by its position in a ``SelectiveBatchSampler``.
        held_back: batches of clean examples that no model passed to ``fit`` was trained on. About 50 of each group are
            enough.
        spec: where the parts of a batch are; None for the usual places.
        batch_size: examples at a time; None for that of a DataLoader, else 256.
        num_probed: examples that the probe is trained on.
        seed: of the choice of these examples.

    State:
        weights and name of the filter, so that ``Checkpoints`` can keep it beside the loader.

    Raises:
        TypeError: for a stream.
        ValueError: for data without an example, held-back batches that can be read only once, or a number out of range.

    Warns:
        RuntimeWarning: in ``fit``, if there are too few held-back examples to tell.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> random = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(600, 4, generator=random)
        >>> labels = inputs.argmax(dim=1)
        >>> noisy = torch.where(torch.rand(500, generator=random) < 0.4, labels[:500].flip(0), labels[:500])
        >>> reference = nn.Linear(4, 4)
        >>> _ = reference.weight.data.copy_(3 * torch.eye(4)), reference.bias.data.zero_()
        >>> belief = Belief(TensorDataset(inputs[:500], noisy), [(inputs[500:], labels[500:])]).fit(reference)
        >>> belief.filter != "none", bool(belief.weights[noisy != labels[:500]].mean() < 0.2 * belief.weights.max())
        (True, True)

    Source: this package; compared with fixed filters in docs/research.md.
    """

    def __init__(
        self,
        data: Any,
        held_back: Iterable[Any],
        *,
        spec: BatchSpec | None = None,
        batch_size: int | None = None,
        num_probed: int = 2000,
        seed: int = 0,
    ) -> None:
        check_count("num_probed", num_probed)
        if not len(dataset_of(data)):
            raise ValueError("The data set has no examples, so there are no labels to believe.")
        if isinstance(held_back, Iterator):
            raise ValueError(  # noqa: TRY004  (it is iterable, but only once)
                f"Every `fit` reads the held-back examples, and a {type(held_back).__name__} can be iterated only once. "
                "Pass a loader, or a list of batches."
            )
        self._data, self._held_back = data, held_back
        self._spec, self._batch_size, self._num_probed, self._seed = spec, batch_size, num_probed, seed
        self._table: ModelTable | None = None
        self.weights = torch.ones(len(dataset_of(data)), dtype=torch.float64)
        """(N,) in [0, 1], in the order of the data set; 0 for examples that are not drawn."""
        self.filter = "none"
        """Key of ``FILTERS``."""
        self.losses: dict[str, float] = {}
        """Loss of the probe on the held-back examples with each filter, the mean over groups, in nats."""
        self.probabilities: Tensor | None = None
        """(N,) float64, of the label according to the model; None before ``fit``."""
        self._is_suspect: Tensor | None = None

    def fit(self, model: nn.Module) -> Belief:
        """Choose the filter by what ``model`` believes, and set the weights.

        Runs the model once on every training example. It is called in eval mode, and left as it was; global random
        states are restored.

        Args:
            model: returns logits (B, C), on any device.

        Returns:
            This belief.

        Raises:
            ValueError: for outputs that are not finite logits (B, C), targets that are not classes, or no held-back
                examples.
        """
        table, probabilities, targets = _tabulated(model, self._data, batch_size=self._batch_size, spec=self._spec)
        chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(self._seed))[: self._num_probed]
        sampled = loader_of(self._data, batch_size=self._batch_size, positions=chosen.tolist())
        with same_random_state():
            sample, judged = (_part(model, batches, self._spec) for batches in (sampled, self._held_back))
        _check_judged(judged, probabilities.shape[1])
        losses = _filter_losses(sample, judged, chosen, probabilities, targets)
        self.losses = {name: float(values.mean) for name, values in losses.items()}
        best = min(self.losses, key=self.losses.__getitem__)
        gain, error = paired_gain(losses["none"], losses[best])
        self.filter = best if gain > error else _without_gain(judged)
        self.weights = FILTERS[self.filter].weights(probabilities, targets)
        self.probabilities = probabilities.gather(1, targets[:, None])[:, 0].double()
        self._is_suspect = probabilities.argmax(dim=1) != targets
        self._table = _weight_table(table, self.weights)
        return self

    def lookup(self, batch: Batch) -> Tensor:
        """Return ``-log(weight)`` (B,) of the examples of a batch, float32; 1,000 where the weight is 0."""
        if self._table is None:
            return torch.zeros(len(batch.target), device=batch.target.device)
        return self._table.rows(batch)

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
                f"A belief chooses the strength of its filter, and irreducible_temperature={temperature} of "
                f"{rule.name!r} would change it. Pass irreducible_temperature=1."
            )
        return self

    def suspects(self, num: int) -> Tensor:
        """Return the positions (num,) of the examples whose labels are believed least, least first.

        The model finds another label more likely for all of them, so fewer may come.

        Raises:
            RuntimeError: before ``fit``.
        """
        check_count("num", num)
        if self._is_suspect is None or self.probabilities is None:
            raise RuntimeError("No model has been asked yet. Call belief.fit(model) first.")
        suspects = torch.nonzero(self._is_suspect).flatten()
        return suspects[self.probabilities[suspects].argsort(stable=True)[:num]]

    def state_dict(self) -> dict[str, Any]:
        """Return the filter, the weights, and the indices and labels of the examples (None before ``fit``)."""
        table = self._table
        return {
            "filter": self.filter,
            "weights": self.weights.clone(),
            "losses": dict(self.losses),
            "index": None if table is None else table.index,
            "targets": None if table is None else table.targets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: for the state of something else, or of another number of examples.
        """
        check_state_keys("a belief", state, ("filter", "weights", "losses", "index", "targets"))
        weights = torch.as_tensor(state["weights"])
        if weights.shape != self.weights.shape or state["filter"] not in FILTERS:
            raise ValueError(
                f"This belief has {len(self.weights)} training examples; the state has the filter {state['filter']!r} "
                f"and weights of shape {tuple(weights.shape)}. Load it with the data set that it was saved with."
            )
        self.filter, self.losses = state["filter"], dict(state["losses"])
        self.weights = weights.to("cpu", torch.float64).clone()
        self.probabilities = self._is_suspect = None
        losses = IrreducibleTable(_losses_of(self.weights), kind="loss")
        self._table = ModelTable(losses, index=state["index"], targets=state["targets"]) if self.losses else None

    def __str__(self) -> str:
        if not self.losses:
            return "No filter: no model has been asked yet."
        if self.filter == "none":
            return f"No filter: held-back examples show no gain by any (probe loss {self.losses['none']:.3f})."
        kept = float((self.weights > 0).double().mean())
        mean = float(self.weights.mean() / self.weights.max())
        return (
            f"Filter {self.filter!r}: probe loss {self.losses['none']:.3f} -> {self.losses[self.filter]:.3f} on "
            f"held-back examples, {100 * kept:.0f} % of the examples kept, mean weight {mean:.2f}."
        )


def _without_gain(judged: Part) -> str:
    """The filter if none is seen to gain: none, unless there are too few examples to see it."""
    counts = torch.bincount(judged.groups)
    fewest = int(counts[counts > 0].min())
    if fewest >= FEW_EXAMPLES:
        return "none"
    warnings.warn(
        f"The smallest group has {fewest} held-back examples, too few to tell whether a filter helps, so it is "
        f"{DEFAULT!r}. Hold back {FEW_EXAMPLES} or more of each group.",
        RuntimeWarning,
        stacklevel=3,
    )
    return DEFAULT


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


def _weight_table(table: ModelTable, weights: Tensor) -> ModelTable:
    """The same index with -log(weight) as rows."""
    own = copy.copy(table)
    own.table = IrreducibleTable(_losses_of(weights), kind="loss")
    return own


def _losses_of(weights: Tensor) -> np.ndarray:
    losses: np.ndarray = (-weights.log()).clamp(max=_LARGEST).float().numpy()
    return losses


def _tabulated(
    model: nn.Module, data: Any, *, batch_size: int | None, spec: BatchSpec | None
) -> tuple[ModelTable, Tensor, Tensor]:
    """Return the rows by index, the probabilities (N, C) of the classes, and the labels (N,)."""
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
    return table, logits.softmax(dim=1), table.targets


def _checked_logits(module: nn.Module, batch: Batch) -> Tensor:
    logits = checked_logits(model_output(module, batch.input), len(batch.target), owner="The model of a belief")
    num_broken = int((logits.isnan() | (logits == torch.inf)).any(dim=1).sum())
    if num_broken:
        raise ValueError(
            f"The model of a belief returned NaN or infinite logits for {num_broken} of {len(logits)} examples. Check "
            "the inputs, and whether its training diverged."
        )
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
