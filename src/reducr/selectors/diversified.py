"""DivBS: a diverse subset whose gradients represent the gradient of all candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.memory import available_memory, in_units
from reducr.batch import Candidates
from reducr.selectors.base import Selector
from reducr.selectors.checks import check_single_pass

_NUM_MATRICES = 4
"""The Gram matrix, its copy on the CPU, the part of the remaining examples and its factor."""


class DivBS(Selector):
    """Diversified batch selection: examples are chosen greedily by what their gradients add to those chosen before.

    The gradients are those of the cross-entropy with respect to the weights of the last layer, which must be linear.
    The subset represents their sum over all candidates (see ``functional.orthogonal_order``). The score of an example
    is B minus its position in that order. Computing the order takes about B^3 / 3 operations on the CPU.

    Source: Hong et al., ICML 2024 (arXiv 2406.04872). The faster variant, which ignores the norm of the orthogonal part
    of a gradient, is not implemented.
    """

    name = "divbs"
    is_pointwise = False
    needs = frozenset({"logits", "targets", "features"})

    def check_candidates(self, candidates: Candidates) -> None:
        """Raise an error unless the needed fields are there and the logits have shape (B, C)."""
        super().check_candidates(candidates)
        check_single_pass(candidates, self.name)
        self.check_num_candidates(candidates.num_candidates)

    def check_num_candidates(self, num_candidates: int) -> None:
        """Raise ValueError unless the matrices (B, B) of the order fit into the available memory."""
        size, available = _NUM_MATRICES * 8 * num_candidates**2, available_memory()
        if available is not None and size > available:
            raise ValueError(
                f"{self.name} computes {_NUM_MATRICES} matrices of {num_candidates:,} x {num_candidates:,} numbers, "
                f"{in_units(size)}, and {in_units(available)} of memory are available. Lower the number of candidates "
                "(`num_candidates`), or choose another rule."
            )

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """The model loss if it is set, the predictions (B, C) and the features (B, D)."""
        predictions = torch.softmax(candidates.logits.float(), dim=1)  # type: ignore[union-attr]  # in needs
        return [*super().losses(candidates), predictions, candidates.features]  # type: ignore[list-item]  # in needs

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) float64, from B for the first example in the order down to 1."""
        gram = functional.last_layer_gram(candidates.logits, candidates.targets, candidates.features)  # type: ignore[arg-type]  # in needs
        order = functional.orthogonal_order(gram)
        scores = torch.arange(len(order), 0, -1, dtype=torch.float64, device=order.device)
        return torch.empty_like(scores).index_copy_(0, order, scores)
