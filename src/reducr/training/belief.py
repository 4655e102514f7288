"""How much to believe the label of every training example, and how strongly to filter by it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
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
from reducr.training.filters import DEFAULT, FEW_EXAMPLES, FILTERS
from reducr.training.probe import (
    GroupLosses,
    Part,
    fit_probe,
    group_losses,
    last_layer_inputs,
    paired_gain,
    with_numbered_groups,
)

_SMALLEST = 1e-6
_LARGEST = 1000.0


class Belief:
    """How much to believe the label of each training example, and how strongly to filter by it.

    A loop with ``priority_sampling`` takes it as ``irreducible``: within a group an example is drawn in proportion to
    its weight. All weights are 1 until ``fit(model)``, which you may call before training with a reference model, and
    during training with the model itself. Pass ``irreducible_temperature=1`` to the rule, because ``fit`` chooses the
    strength.

    How much filtering helps depends on how many labels are wrong, on who made the errors, and on how good the model is;
    too much of it leaves out the hard examples. So ``fit`` tries several filters, with p the probability that the model
    gives to the label of an example::

        none                                            weight 1
        belief^0.25, belief^0.5, belief, belief^2       weight p ** 0.25, p ** 0.5, p, p ** 2
        drop, drop 1.5                                  weight 0 for those examples of a class with the smallest p, as
                                                        many as the model disagrees with, or 1.5 times as many; else 1

    Each is judged by a probe: logistic regression on the inputs of the model's last layer, trained on ``num_probed``
    training examples with these weights, every group with the same total weight. ``fit`` keeps the filter whose probe
    has the smallest loss on the clean held-back examples (mean over groups, after temperature scaling), or none if that
    is no more than one standard error better than none. If a group has fewer than ten held-back examples, it keeps
    ``belief^0.5`` and warns.

    Args:
        data: the training data, map-style, or a DataLoader of it; without random augmentation. Weights are found by the
            index that an example yields (see ``reducr.indexed``), else by its position.
        held_back: batches of clean examples on which no model passed to ``fit`` was trained, such as a part of the
            clean set that is in no ``holdout`` with a ``holdout_fraction``. About 50 of each group are enough.
        spec: where the parts of a batch are; None for the usual places.
        batch_size: examples at a time; None for that of a DataLoader, else 256.
        num_probed: examples that the probe is trained on.
        seed: of the choice of these examples.

    State:
        filter, weights and what ``suspects`` needs, so that ``Checkpoints`` can keep it beside the loader.

    Raises:
        TypeError: for a stream.
        ValueError: for data without an example, held-back batches that can be read only once, or a number out of range.

    Warns:
        RuntimeWarning: in ``fit``, if a group of the training data has fewer than ten held-back examples.

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
                f"Every `fit` reads the held-back examples, and a {type(held_back).__name__} can be iterated only "
                "once. Pass a loader, or a list of batches."
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
            TypeError: for anything but a model.
            ValueError: for outputs that are not finite logits (B, C), targets that are not classes, or no held-back
                examples.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
        with torch.inference_mode(False), same_random_state():  # the probe needs gradients
            self._fit(model)
        return self

    def _fit(self, model: nn.Module) -> None:
        table, probabilities, targets = _tabulated(model, self._data, batch_size=self._batch_size, spec=self._spec)
        chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(self._seed))[: self._num_probed]
        sampled = loader_of(self._data, batch_size=self._batch_size, positions=chosen.tolist())
        sample, judged = with_numbered_groups(*(_part(model, part, self._spec) for part in (sampled, self._held_back)))
        _check_judged(judged, probabilities.shape[1])
        losses = _filter_losses(sample, judged, chosen, probabilities, targets)
        self.losses = {name: float(values.mean) for name, values in losses.items()}
        if _is_too_small(judged, sample):
            self.filter = DEFAULT
        else:
            best = min(self.losses, key=self.losses.__getitem__)
            gain, error = paired_gain(losses["none"], losses[best])
            self.filter = best if gain > error else "none"
        self.weights = FILTERS[self.filter].weights(probabilities, targets)
        self.probabilities = probabilities.gather(1, targets[:, None])[:, 0].double()
        self._is_suspect = probabilities.max(dim=1).values > self.probabilities
        self._table = _weight_table(table, self.weights)

    def lookup(self, batch: Batch) -> Tensor:
        """Return ``-log(weight)`` (B,) of the examples of a batch, float32; 1,000 where the weight is 0."""
        if self._table is None:
            return torch.zeros(len(batch.target), device=batch.target.device)
        return self._table.rows(batch)

    def bind(self, rule: Selector, *, loss: PerExampleLoss | None = None) -> Belief:
        """Return this belief, for a rule that draws by it.

        Raises:
            ValueError: for a rule that reads outputs of the model, or that reads no irreducible loss per example; for a
                temperature that would change the weights.
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

        Only examples for which the model finds another label more likely are returned, so there may be fewer.

        Raises:
            RuntimeError: before ``fit``.
        """
        check_count("num", num)
        if self._is_suspect is None or self.probabilities is None:
            raise RuntimeError("No model has been asked yet. Call belief.fit(model) first.")
        suspects = torch.nonzero(self._is_suspect).flatten()
        return suspects[self.probabilities[suspects].argsort(stable=True)[:num]]

    def state_dict(self) -> dict[str, Any]:
        """Return the filter, the weights, what ``suspects`` needs, and the indices and labels (None before ``fit``)."""
        table = self._table
        return {
            "filter": self.filter,
            "weights": self.weights.clone(),
            "losses": dict(self.losses),
            "probabilities": self.probabilities,
            "is_suspect": self._is_suspect,
            "index": None if table is None else table.index,
            "targets": None if table is None else table.targets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: for the state of something else, or of another number of examples.
        """
        check_state_keys("a belief", state, self.state_dict())
        weights = torch.as_tensor(state["weights"])
        if weights.shape != self.weights.shape or state["filter"] not in FILTERS:
            raise ValueError(
                f"This belief has {len(self.weights)} training examples; the state has the filter {state['filter']!r} "
                f"and weights of shape {tuple(weights.shape)}. Load it with the data set that it was saved with."
            )
        own, targets = None if self._table is None else self._table.targets, state["targets"]
        if own is not None and targets is not None and not torch.equal(own, targets.cpu()):
            raise ValueError(
                f"{int((own != targets.cpu()).sum())} of {len(own)} labels differ between this belief's training data "
                "and the state. Load it with the data set that it was saved with, in the same order."
            )
        self.filter, self.losses = state["filter"], dict(state["losses"])
        self.weights = weights.to("cpu", torch.float64).clone()
        self.probabilities, self._is_suspect = state["probabilities"], state["is_suspect"]
        losses = IrreducibleTable(_losses_of(self.weights), kind="loss")
        self._table = ModelTable(losses, index=state["index"], targets=state["targets"]) if self.losses else None

    def __str__(self) -> str:
        if not self.losses:
            return "No filter: no model has been asked yet."
        if self.filter == "none":
            return f"No filter: held-back examples show no gain by any (probe loss {self.losses['none']:.3f})."
        return (
            f"Filter {self.filter!r}: probe loss {self.losses['none']:.3f} -> {self.losses[self.filter]:.3f} on "
            f"held-back examples, mean weight {float(self.weights.mean()):.2f}."
        )


def _is_too_small(judged: Part, sample: Part) -> bool:
    """Whether a group of the training examples has too few held-back ones to judge filters by; warns if so."""
    counts = torch.bincount(judged.groups, minlength=int(sample.groups.max()) + 1)
    fewest = int(counts[torch.bincount(sample.groups, minlength=len(counts)) > 0].min())
    if fewest >= FEW_EXAMPLES:
        return False
    warnings.warn(
        f"A group of the training data has {fewest} held-back examples, too few to choose a filter by, so the filter "
        f"is {DEFAULT!r}. Hold back {FEW_EXAMPLES} or more of each group.",
        RuntimeWarning,
        stacklevel=4,
    )
    return True


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

    with scoring_pass(module, "eval"), torch.no_grad():
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


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module whose layers are called, and whose hooks run."""
    module = without_wrappers(model)
    return getattr(module, "_orig_mod", module)


def _checked_logits(module: nn.Module, batch: Batch) -> Tensor:
    logits = checked_logits(model_output(module, batch.input), len(batch.target), owner="The model of a belief")
    num_broken = int((~logits.isfinite()).any(dim=1).sum())
    if num_broken:
        raise ValueError(
            f"The model of a belief returned NaN or infinite logits for {num_broken} of {len(logits)} examples. Check "
            "the inputs, and whether its training diverged; mask a class with a finite value, such as -1e4."
        )
    if logits.shape[1] < 2:
        raise ValueError("A belief needs a logit for each class; this model returns one logit. Give it two outputs.")
    return logits


@torch.no_grad()
def _part(model: nn.Module, batches: Iterable[Any], spec: BatchSpec | None) -> Part:
    """The inputs of the last layer, targets and groups of all examples."""
    device, module, read = device_of(model), _uncompiled(model), BatchReader(spec)
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
