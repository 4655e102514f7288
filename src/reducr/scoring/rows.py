"""What the candidates of a batch are: its examples, or its labelled tokens if the loss is a ``TokenLoss``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, Selection
from reducr.batch.nested import ListKinds, index_batch, zero_inputs
from reducr.functional import TokenLoss
from reducr.functional.sequences import row_groups
from reducr.scoring.options import Scoring
from reducr.selectors import Selector

_TOKEN_FIELDS = frozenset({"model_loss", "irreducible_loss", "group_irreducible_loss", "groups"})


def check_rows(loss: PerExampleLoss | None, selector: Selector, scoring: Scoring, spec: BatchSpec | None) -> None:
    """See that rule, scoring and spec can serve a selection by token, if ``loss`` is a ``TokenLoss``.

    Raises:
        TypeError: for a loss that is not a function, or the class ``TokenLoss`` in place of one.
        ValueError: for a rule that reads more than losses and groups, or weights examples; for a scoring budget; for
            targets that are read by a function.
    """
    if loss is not None and not callable(loss):
        raise TypeError(
            "`loss` must be a function of (output, target) that returns one value per example, such as "
            f"reducr.functional.sequence_loss; got {type(loss).__name__}."
        )
    if isinstance(loss, type) and issubclass(loss, TokenLoss):
        raise TypeError("`loss` must be a TokenLoss, and this is the class. Pass loss=TokenLoss().")
    if not isinstance(loss, TokenLoss):
        return
    reads = sorted(selector.needs - _TOKEN_FIELDS)
    if reads or selector.weights_examples or selector.holdout_loss == "zero_one":
        what = (
            f"reads {', '.join(reads)}"
            if reads
            else "weights the loss of each example"
            if selector.weights_examples
            else "counts wrong predictions (holdout_loss='zero_one')"
        )
        raise ValueError(
            f"A selection by token (loss=TokenLoss()) serves rules that read losses and groups, such as 'rho_loss', "
            f"'train_loss' and 'reducr'; {selector.name!r} {what}. Choose such a rule, or select by sequence with "
            "loss=reducr.functional.sequence_loss."
        )
    if scoring.budget is not None:
        raise ValueError(
            "A scoring budget remembers one loss per example, and a selection by token (loss=TokenLoss()) has one per "
            "token. Leave `budget` out, or select by sequence with loss=reducr.functional.sequence_loss."
        )
    if spec is not None and callable(spec.target):
        raise ValueError(
            "A selection by token (loss=TokenLoss()) writes the labels of the batch, and `BatchSpec.target` is a "
            "function, which only reads them. Pass their position, key or path."
        )


def candidate_groups(batch: Batch, loss: PerExampleLoss | None) -> Tensor:
    """Return the group of each candidate: of each example, or of each labelled token.

    Raises:
        ValueError: if there is no labelled token.
    """
    groups = row_groups(batch.group, batch.target, loss)
    if not groups.shape[0]:
        raise ValueError(
            "No token of this batch has a label: there is nothing to select from. Leave sequences without labels out "
            "of the data, or use larger batches of candidates."
        )
    return groups


def selected_part(
    batch: Any,
    candidates: Batch,
    selection: Selection,
    *,
    loss: PerExampleLoss | None,
    reader: BatchReader,
    kinds: ListKinds | None = None,
) -> Any:
    """Return the selected examples of ``batch``, or all its examples with the labels of the selected tokens only.

    Args:
        batch: the candidates; not changed.
        candidates: its parts.
        selection: from these candidates.
        loss: decides which of the two.
        reader: has read the batch.
        kinds: of the lists in the candidates.
    """
    if isinstance(loss, TokenLoss):
        selected = reader.with_target(batch, loss.keep(candidates.target, selection.positions))
    else:
        size = candidates.target.shape[0]
        selected = index_batch(batch, selection.positions, num_examples=size, kinds=kinds)
    return zero_inputs(selected) if selection.has_nonfinite_loss else selected
