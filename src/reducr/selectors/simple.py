"""Simple rules: uniform, train loss, irreducible loss, RHO-LOSS and class-balanced."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr.batch import Candidates
from reducr.selectors.base import Selector


class Uniform(Selector):
    """Uniform draw, whatever the sampler: the score is a random number."""

    name = "uniform"
    is_pointwise = False

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) independent uniform numbers in [0, 1)."""
        return uniform_numbers(candidates, generator)


def uniform_numbers(candidates: Candidates, generator: torch.Generator | None) -> Tensor:
    """(B,) independent uniform numbers in [0, 1), on the device of the candidates."""
    device = candidates.device if generator is None else generator.device
    return torch.rand(candidates.num_candidates, device=device, generator=generator).to(candidates.device)


class TrainLoss(Selector):
    """The model loss: hard examples first, mislabelled ones among them.

    Source: Loshchilov & Hutter 2016 (arXiv 1511.06343); its exponential-rank sampler is the default, as in the
    published baseline.
    """

    name = "train_loss"
    needs = frozenset({"model_loss"})
    default_sampler = "exponential_rank"

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) ``l_i``."""
        return functional.excess_loss(candidates.model_loss, None)


class IrreducibleLoss(Selector):
    """Examples that the reference model (the paper's irreducible model) finds easy: ``-r_i``.

    Source: RHO-LOSS (arXiv 2206.07137), the "irreducible loss" ablation.
    """

    name = "irreducible_loss"
    needs = frozenset({"irreducible_loss"})

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) ``-r_i``."""
        return functional.excess_loss(None, candidates.irreducible_loss)


class RhoLoss(Selector):
    """Reducible holdout loss: ``l_i - r_i``, with r from one reference model trained on the whole holdout set.

    Source: RHO-LOSS (arXiv 2206.07137), eq. 3.
    """

    name = "rho_loss"
    needs = frozenset({"model_loss", "irreducible_loss"})

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) ``l_i - r_i``."""
        return functional.excess_loss(candidates.model_loss, candidates.irreducible_loss)


class ClassBalanced(Selector):
    """Class-balanced draw: every group among the candidates is equally likely, ``p_i`` proportional to ``1 / n_g(i)``.

    ``n_g`` is the number of candidates of group g. The draw is without replacement, so a group with too few candidates
    is selected completely.

    Source: the usual class-balanced sampling; the selection-free baseline of docs/method.md section 6.
    """

    name = "class_balanced"
    is_pointwise = False
    needs = frozenset({"groups"})
    default_sampler = "power"

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) 1 over the number of candidates in the group of the example."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in self.needs
        return 1.0 / torch.bincount(groups, minlength=self.num_groups)[groups]
