"""Rules that read the model's output: gradient norm, entropy, and the BALD family over MC-dropout samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.checks import check_count, is_finite_number
from reducr.batch import Candidates
from reducr.selectors.base import Selector
from reducr.selectors.checks import check_single_pass


class GradientNorm(Selector):
    """Upper bound on the gradient norm of an example, ``|| softmax(z_i) - onehot(y_i) ||_2``.

    Source: Katharopoulos & Fleuret 2018 (arXiv 1803.00942).
    """

    name = "gradient_norm"
    needs = frozenset({"logits", "targets"})

    def check_candidates(self, candidates: Candidates) -> None:
        """Raise an error unless the needed fields are there and the logits have shape (B, C)."""
        super().check_candidates(candidates)
        check_single_pass(candidates, self.name)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) in [0, sqrt(2)]."""
        return functional.gradient_norm(candidates.logits, candidates.targets)  # type: ignore[arg-type]  # in needs


class Entropy(Selector):
    """Entropy of the predicted distribution: selects what the model is least sure of. Targets are not used."""

    name = "entropy"
    needs = frozenset({"logits"})

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        return functional.predictive_entropy(candidates.logits)  # type: ignore[arg-type]  # in needs


class DropoutSampled(Selector):
    """Base class of rules over MC-dropout samples: ``num_dropout_samples`` forward passes with dropout on.

    ``Candidates.logits`` hold the samples as (S, B, C); (B, C) counts as one sample.

    Args:
        num_groups: G >= 1.
        num_dropout_samples: S >= 2; the scoring pass costs S forward passes.
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: if ``num_dropout_samples`` is below 2.

    Source: Gal, Islam & Ghahramani 2017 (arXiv 1703.02910).
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        *,
        num_groups: int,
        num_dropout_samples: int = 10,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        check_count("num_dropout_samples", num_dropout_samples, least=2)
        self.num_dropout_samples = num_dropout_samples


class ConditionalEntropy(DropoutSampled):
    """Mean entropy of the MC-dropout samples: the label noise that the model expects."""

    name = "conditional_entropy"

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        return functional.conditional_entropy(candidates.logits)  # type: ignore[arg-type]  # in needs


class Bald(DropoutSampled):
    """BALD: mutual information between the label and the parameters, from MC-dropout samples."""

    name = "bald"

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        return functional.mutual_information(candidates.logits)  # type: ignore[arg-type]  # in needs


class LossMinusConditionalEntropy(DropoutSampled):
    """``l_i`` minus the conditional entropy: high losses where the model expects little label noise.

    Source: RHO-LOSS (arXiv 2206.07137), appendix on related acquisition functions.
    """

    name = "loss_minus_conditional_entropy"
    needs = frozenset({"model_loss", "logits"})

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        loss = functional.excess_loss(candidates.model_loss, None)
        return loss - functional.conditional_entropy(candidates.logits)  # type: ignore[arg-type]  # in needs


class LossPlusConditionalEntropy(DropoutSampled):
    """``l_i`` plus the conditional entropy.

    Source: RHO-LOSS (arXiv 2206.07137), appendix on related acquisition functions.
    """

    name = "loss_plus_conditional_entropy"
    needs = frozenset({"model_loss", "logits"})

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        loss = functional.excess_loss(candidates.model_loss, None)
        return loss + functional.conditional_entropy(candidates.logits)  # type: ignore[arg-type]  # in needs


class BayesianSelection(DropoutSampled):
    """Bayesian data selection, with the reference model (the paper's irreducible model) as the zero-shot predictor.

    With ``l_is`` the loss of example i under dropout sample s and ``r_i`` its irreducible loss::

        score_i = -log mean_s exp(-l_is)  -  alpha mean_s l_is  -  (1 - alpha) r_i

    The first term is the loss of the averaged prediction. If all samples agree, the score is ``1 - alpha`` times that
    of ``rho_loss``. If they disagree, the loss of the averaged prediction is below the average loss, and the score is
    lower by the difference. The paper samples from a Laplace approximation of the last layer's posterior, not with
    MC-dropout.

    Args:
        num_groups: G >= 1.
        alpha: in [0, 1], weight of the current model against the reference model; the paper tunes it.
        num_dropout_samples: S >= 2; the scoring pass costs S forward passes.
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: for a value outside its range.

    Source: Deng, Cui & Zhu, NeurIPS 2023 (arXiv 2308.10544).
    """

    name = "bayesian_selection"
    needs = frozenset({"logits", "targets", "irreducible_loss"})

    def __init__(
        self,
        *,
        num_groups: int,
        alpha: float = 0.2,
        num_dropout_samples: int = 10,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, num_dropout_samples=num_dropout_samples, **sampler_options)
        if not (is_finite_number(alpha) and 0 <= alpha <= 1):
            raise ValueError(f"alpha must be in [0, 1], the weight of the current model; got {alpha}.")
        self.alpha = float(alpha)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) nats."""
        return functional.bayesian_score(
            candidates.logits,  # type: ignore[arg-type]  # in needs
            candidates.targets,  # type: ignore[arg-type]  # in needs
            candidates.irreducible_loss,  # type: ignore[arg-type]  # in needs
            alpha=self.alpha,
        )
