"""One reference model (the paper's irreducible model) that serves every rule the losses it asks for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count, check_gradient_weight
from reducr._internal.rng import random_state, set_random_state
from reducr.batch import Batch, BatchSpec, PerExampleLoss
from reducr.functional import TokenLoss
from reducr.irreducible.adjusted import LogitSource, check_group_of_target
from reducr.irreducible.bound import BoundReference, Rule, all_losses, own_losses
from reducr.irreducible.model_table import tabulated
from reducr.irreducible.sources import Source, TableRows, device_of_modules, source_of


class Reference:
    """Irreducible losses of a reference model (the paper's irreducible model), for any rule and any per-example loss.

    A loop that gets a reference as ``irreducible`` reads from it what its rule asks for:

    - *one loss per example*, (B,), for rules such as ``rho_loss`` and ``priority_sampling``: ``loss(output, target)``.
    - *one loss per example and group*, (B, G), for rules such as ``reducr``. They follow in closed form from one model
      where the groups follow from the targets: the model of group c has the logits ``z + log(g) e_c``, and
      ``r_c = loss(z + log(g) e_c, target)``, where ``e_c`` is 1 for the targets of group c, else 0, and g is the
      ``gradient_weight``. From a model that predicts (target, group) pairs they follow for any groups.

    Without a ``loss`` of its own a reference takes that of the loop, so language models, soft labels, several labels
    per example and regression work as they do for the model.

    Where groups are domains, sources or attributes and not targets, a single model that predicts targets has no closed
    form, and is refused. Pass a list of models, one for each group; they work with any loss. ``gradient_weight=1``
    gives every group the same plain loss, the exact limit for g = 1. Equal columns cancel out of REDUCR's score, so
    ``reducr`` then selects what ``rho_loss`` selects.

    Models are put into eval mode, stay there, and follow the batches to their device. Over the first 512 candidates a
    loop sees whether the model is near chance, as an untrained one is, and warns once if so.

    Args:
        model: called with a batch's input; returns logits (B, C), or whatever ``loss`` takes. Or a list of G models,
            model c trained with more weight on group c; rules that need one loss per example then get that of the
            model of the example's own group. Or a source of logits, such as ``TableLogits``: anything with
            ``logits(batch)``.
        loss: of (output, target), one value per example; None for that of the loop, by default the cross-entropy.
        num_joint_groups: G if the model predicts (target, group) pairs, target-major; None if it predicts targets.
        group_of_target: (C,) integers, the group of each target; None if groups equal targets.
        gradient_weight: g >= 1, the weight that a trained model of a group would give to the examples of that group.
        is_frozen: disable gradients of the parameters. Set to False for a model that keeps learning.

    Raises:
        TypeError: for a model or loss of another kind.
        ValueError: for an option out of range, or options that exclude each other; when a loop is made, if the groups
            are not those of its rule; at the first batch, if its groups do not follow from its targets where they must.

    Example:
        >>> from reducr import make_selector
        >>> batch = Batch(None, torch.zeros(2, 4), torch.tensor([0, 2]), torch.tensor([0, 2]))
        >>> reference = Reference(nn.Linear(4, 3))
        >>> for name in ("rho_loss", "reducr"):
        ...     print(name, tuple(reference.bind(make_selector(name, num_groups=3)).lookup(batch).shape))
        rho_loss (2,)
        reducr (2, 3)

    Source: docs/method.md, section 4; REDUCR (arXiv 2312.00486), section 4.3.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module] | LogitSource,
        *,
        loss: PerExampleLoss | None = None,
        num_joint_groups: int | None = None,
        group_of_target: Tensor | Sequence[int] | None = None,
        gradient_weight: float = 10.0,
        is_frozen: bool = True,
    ) -> None:
        check_gradient_weight(gradient_weight)
        if loss is not None and not callable(loss):
            raise TypeError(f"`loss` must be a function of (output, target); got {type(loss).__name__}.")
        if num_joint_groups is not None:
            check_count("num_joint_groups", num_joint_groups)
        self.is_per_group = isinstance(model, list | tuple | nn.ModuleList)
        """Whether there is one model for each group."""
        self.source: Source = source_of(model, is_frozen=is_frozen)
        self.loss = loss
        self.num_joint_groups = self.source.num_joint_groups if num_joint_groups is None else num_joint_groups
        self.group_of_target: Tensor | None = None
        self.gradient_weight = float(gradient_weight)
        if group_of_target is None:
            return
        self.group_of_target = torch.as_tensor(group_of_target)
        check_group_of_target(self.group_of_target)
        if self.is_per_group or self.num_joint_groups is not None:
            kind = "a list of models has one for each group" if self.is_per_group else "pairs have their groups"
            raise ValueError(f"`group_of_target` has no effect, because {kind}. Leave it out.")

    def lookup(self, batch: Batch) -> Tensor:
        """Return the losses (B,) in nats, as for a rule that needs one loss per example.

        What a rule needs is read from ``bind(rule)``.
        """
        with torch.no_grad():
            losses = all_losses(self, self.source.outputs(batch), batch.target, self.loss)
            return own_losses(losses, batch, self.loss)

    def bind(self, rule: Rule, *, loss: PerExampleLoss | None = None) -> BoundReference:
        """Return what ``rule`` reads of this reference in one loop: ``lookup(batch)`` gives (B,) or (B, G).

        Args:
            rule: a selector.
            loss: of the loop; used if this reference has none of its own.

        Raises:
            ValueError: if the groups of this reference are not those of the rule, or one of the two losses is a
                ``TokenLoss`` and the other is not.
        """
        _check_same_rows(self.loss, loss)
        return BoundReference(self, rule, loss if self.loss is None else self.loss)

    @torch.no_grad()
    def tabulate(self, data: Any, *, batch_size: int | None = None, spec: BatchSpec | None = None) -> Reference:
        """Run the models once on every example of a data set, and return a reference that reads the results by index.

        The table has the float32 logits (N, C) of one model, 4 N C bytes. Of other outputs, and of a list of models, it
        has the losses, (N, 1) or (N, G). An example's row is found by its index: the one that the data set yields, else
        its position. The training data must yield the same index, as ``reducr.indexed(dataset)`` does.

        Args:
            data: a map-style data set, or a DataLoader of one, which is read in the order of the data set whatever its
                sampler is. Without random augmentation.
            batch_size: examples at a time; None for that of the DataLoader, else 256.
            spec: where the parts of a batch are; None for the usual places (see ``BatchSpec.of``).

        Returns:
            A reference with the same options. This one is not changed, and neither are global random states.

        Raises:
            TypeError: for a stream.
            ValueError: for a batch that cannot be read, a repeated index, or outputs that need a ``loss``.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
            >>> table = Reference(nn.Linear(4, 2)).tabulate(data)
            >>> table.lookup(Batch(torch.tensor([3]), None, torch.tensor([0]), torch.tensor([0]))).shape
            torch.Size([1])
        """
        if isinstance(self.loss, TokenLoss):
            raise ValueError(  # noqa: TRY004  (an option of this reference)
                "A table has one row per example, and TokenLoss gives one loss per token. For a selection by token use "
                "the reference model itself, reducr.Reference(model); for a selection by sequence tabulate "
                "reducr.Reference(model, loss=reducr.functional.sequence_loss)."
            )
        if isinstance(self.source, TableRows):
            raise ValueError("This reference reads a table already. Tabulate the reference of the model.")  # noqa: TRY004
        state = random_state()
        try:
            table = tabulated(
                self._rows, data, batch_size=batch_size, spec=spec, device=device_of_modules(self.source.modules)
            )
        finally:
            set_random_state(state)
        reference = copy.copy(self)
        reference.source = TableRows(table)
        return reference

    def shares_parameters_with(self, model: nn.Module) -> bool:
        """Whether a parameter of ``model`` is one of this reference's."""
        own = {id(parameter) for module in self.source.modules for parameter in module.parameters()}
        return any(id(parameter) in own for parameter in model.parameters())

    def _rows(self, batch: Batch) -> tuple[str, Tensor]:
        """The kind of a table, and its rows for a batch."""
        outputs, target = self.source.outputs(batch), batch.target
        output = outputs[0]
        is_logits = isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 2
        if is_logits and not self.is_per_group:
            return "logits", output.float()
        if isinstance(output, Tensor) and output.ndim == 3 and self.num_joint_groups is not None:
            return "logits", output.flatten(1).float()
        if self.loss is None and not (is_logits and target.ndim == 1 and not target.is_floating_point()):
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"A table holds logits (B, C) or losses, and this model returns {kind} for targets {target.dtype} "
                f"{tuple(target.shape)}. Give the loss of the loop, a function of (output, target) with one value per "
                "example: reducr.Reference(model, loss=...)."
            )
        return "group_loss", all_losses(self, outputs, target, self.loss)


def _check_same_rows(own: PerExampleLoss | None, loss: PerExampleLoss | None) -> None:
    """Raise ValueError if a reference has losses of examples and its loop losses of tokens, or the other way round."""
    if own is None or isinstance(own, TokenLoss) == isinstance(loss, TokenLoss):
        return
    rows, own_rows = ("token", "example") if isinstance(loss, TokenLoss) else ("example", "token")
    raise ValueError(
        f"The loop selects by {rows}, and this reference has a loss of its own that gives one value per {own_rows}. "
        "Leave `loss` out of reducr.Reference(model), which then takes the loss of its loop. A table of losses serves "
        "a selection by example only."
    )
