"""DivBS: points whose gradients, without what they have in common, stand for those of all candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr.batch import Candidates
from reducr.selectors.base import Selector


class DivBS(Selector):
    """Diversified batch selection: greedy, by what each gradient adds to those taken before it.

    Gradients are those of the cross-entropy by the weights of the last layer, which must be linear. Their sum over all
    candidates is to be represented; see ``functional.orthogonal_order``. The score of a point is B less its place in
    that order, which takes about B^3 / 3 operations on the CPU.

    Source: Hong et al., ICML 2024 (arXiv 2406.04872). Its faster variant, which leaves the norm of a gradient's new
    part out of the criterion, is not implemented.
    """

    name = "divbs"
    is_pointwise = False
    needs = frozenset({"logits", "targets", "features"})

    def check_candidates(self, candidates: Candidates) -> None:
        """As for all, and the logits are of one pass."""
        super().check_candidates(candidates)
        logits: Tensor = candidates.logits  # type: ignore[assignment]  # in needs
        if logits.ndim != 2:
            raise ValueError(f"'divbs' needs logits (B, C) of one pass; got shape {tuple(logits.shape)}.")

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """The model loss, if there is one, the predictions (B, C) and the features (B, D)."""
        predictions = torch.softmax(candidates.logits.float(), dim=1)  # type: ignore[union-attr]  # in needs
        return [*super().losses(candidates), predictions, candidates.features]  # type: ignore[list-item]  # in needs

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) float64, B for the point taken first, 1 for the last."""
        gram = functional.last_layer_gram(candidates.logits, candidates.targets, candidates.features)  # type: ignore[arg-type]  # in needs
        order = functional.orthogonal_order(gram)
        places = torch.arange(len(order), 0, -1, dtype=torch.float64, device=order.device)
        return torch.empty_like(places).index_copy_(0, order, places)
