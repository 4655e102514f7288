"""Scores of examples: the larger, the earlier selected."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr.functional.losses import selection_dtype


def excess_loss(model_loss: Tensor | None, irreducible_loss: Tensor | None, *, clip: bool = False) -> Tensor:
    """Excess loss over the irreducible loss: ``l - r``, or ``max(0, l - r)`` with ``clip``.

    Args:
        model_loss: (B,) nats, or None to leave the term out.
        irreducible_loss: (B,) or (B, G) nats, or None to leave the term out.
        clip: replace negative values by zero.

    Returns:
        (B,), or (B, G) for a (B, G) irreducible loss; float32 or float64.

    Raises:
        ValueError: if both terms are left out.

    Example:
        >>> excess_loss(torch.tensor([1.0, 0.2]), torch.tensor([[0.5, 2.0], [0.1, 0.3]]), clip=True)
        tensor([[0.5000, 0.0000],
                [0.1000, 0.0000]])

    Source: RHO-LOSS (arXiv 2206.07137, eq. 3) for (B,), REDUCR (arXiv 2312.00486, eq. 9) for (B, G).
    """
    if model_loss is None:
        if irreducible_loss is None:
            raise ValueError("excess_loss needs the model loss or the irreducible loss; both are None.")
        excess = -irreducible_loss.to(selection_dtype(irreducible_loss))
    elif irreducible_loss is None:
        excess = model_loss.to(selection_dtype(model_loss), copy=True)
    else:
        loss = model_loss.to(selection_dtype(model_loss))
        # float32 minus a narrower dtype is float32
        excess = (loss.unsqueeze(1) if irreducible_loss.ndim == 2 else loss) - irreducible_loss
    return excess.relu() if clip else excess


def reducr_score(excess: Tensor, group_weights: Tensor) -> Tensor:
    """Excess loss averaged with the group weights: ``score_i = sum_c w_c excess_ic``.

    The selection objective also has the group-holdout loss. It is left out, because it is the same for all examples and
    cannot change their order. Equal examples have equal scores in every batch, to the last bit.

    Args:
        excess: (B, G) nats.
        group_weights: (G,) on the simplex.

    Returns:
        (B,) scores, in the dtype of ``excess``.

    Example:
        >>> reducr_score(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.25, 0.75]))
        tensor([2.5000, 0.5000])

    Source: REDUCR (arXiv 2312.00486), Algorithm 1.
    """
    return _ordered_sum(excess * group_weights.to(excess.dtype), dim=1)


def group_payoff(excess: Tensor, group_holdout_loss: Tensor | None, *, holdout_weighting: str) -> Tensor:
    """Payoff of one selection for every group: ``sum_i excess_ic - n h_c``.

    ``n`` is the number of selected examples for ``per_point`` (as in the published runs) and 1 for ``per_step`` (as in
    the paper's Algorithm 1).

    Args:
        excess: (b, G) excess losses of the selected examples, nats.
        group_holdout_loss: (G,) mean holdout loss of each group, nats, or None to leave the term out.
        holdout_weighting: ``"per_point"`` or ``"per_step"``.

    Returns:
        (G,) float64.

    Example:
        >>> group_payoff(torch.ones(4, 2), torch.tensor([0.5, 2.0]), holdout_weighting="per_step")
        tensor([3.5000, 2.0000], dtype=torch.float64)

    Source: docs/method.md section 2.
    """
    payoff = excess.sum(dim=0, dtype=torch.float64)
    if group_holdout_loss is None:
        return payoff
    num_subtractions = len(excess) if holdout_weighting == "per_point" else 1
    return payoff.sub_(group_holdout_loss.double(), alpha=num_subtractions)


def max_min_payoff(excess: Tensor, group_holdout_loss: Tensor) -> Tensor:
    """Payoff of the group that an example helps least: ``min_c (excess_ic - h_c)``.

    Args:
        excess: (B, G) nats.
        group_holdout_loss: (G,) nats.

    Returns:
        (B,) scores.

    Example:
        >>> max_min_payoff(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.5, 1.0]))
        tensor([ 0.5000, -1.0000])

    Source: REDUCR (arXiv 2312.00486), the "payoff" ablation.
    """
    return (excess - group_holdout_loss.to(excess.dtype)).amin(dim=1)


def gradient_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """Upper bound on the gradient norm of an example, up to a constant: ``|| softmax(z) - onehot(y) ||_2``.

    Args:
        logits: (B, C).
        targets: (B,) integers in [0, C).

    Returns:
        (B,) in [0, sqrt(2)].

    Example:
        >>> gradient_norm(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.7071])

    Source: Katharopoulos & Fleuret 2018 (arXiv 1803.00942), eq. 20 for cross-entropy.
    """
    residual = torch.softmax(logits.to(selection_dtype(logits)), dim=1)
    ones = residual.new_ones(len(residual), 1)
    norms: Tensor = torch.linalg.vector_norm(residual.scatter_add(1, targets.long().unsqueeze(1), -ones), dim=1)
    return norms


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted distribution, which is the mean over the MC-dropout samples if there are several.

    Args:
        logits: (B, C), or (S, B, C) for S samples.

    Returns:
        (B,) nats in [0, log C].

    Example:
        >>> predictive_entropy(torch.zeros(1, 4))
        tensor([1.3863])

    Source: Gal, Islam & Ghahramani 2017 (arXiv 1703.02910), eq. 1.
    """
    probabilities = _sampled_log_probabilities(logits).exp()
    return _entropy(_ordered_sum(probabilities, dim=0) / len(probabilities))


def conditional_entropy(logits: Tensor) -> Tensor:
    """Entropy of each MC-dropout sample's prediction, averaged over the samples.

    Args:
        logits: (S, B, C) for S samples; (B, C) counts as one sample.

    Returns:
        (B,) nats in [0, log C].

    Example:
        >>> conditional_entropy(torch.zeros(3, 1, 2))
        tensor([0.6931])

    Source: Houlsby et al. 2011 (arXiv 1112.5745), second term of eq. 2.
    """
    probabilities = _sampled_log_probabilities(logits).exp()
    return _ordered_sum(_entropy(probabilities), dim=0) / len(probabilities)


def mutual_information(logits: Tensor) -> Tensor:
    """BALD: predictive minus conditional entropy, the information that a label would give about the parameters.

    Args:
        logits: (S, B, C) for S samples; (B, C) counts as one sample, whose mutual information is zero.

    Returns:
        (B,) nats, zero up to rounding or larger.

    Example:
        >>> mutual_information(torch.tensor([[[9.0, -9.0]], [[-9.0, 9.0]]]))
        tensor([0.6931])

    Source: Houlsby et al. 2011 (arXiv 1112.5745), eq. 2.
    """
    return predictive_entropy(logits) - conditional_entropy(logits)


def bayesian_score(logits: Tensor, targets: Tensor, irreducible_loss: Tensor, *, alpha: float) -> Tensor:
    """Score of Bayesian data selection: loss of the averaged prediction against the average and the irreducible loss.

    Formula: ``score_i = -log mean_s p_s(y_i | x_i) + alpha mean_s log p_s(y_i | x_i) - (1 - alpha) r_i``.

    Args:
        logits: (S, B, C) for S samples of the posterior; (B, C) counts as one sample.
        targets: (B,) integers in [0, C).
        irreducible_loss: (B,) nats.
        alpha: in [0, 1].

    Returns:
        (B,) nats, float32 or float64.

    Example:
        >>> bayesian_score(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0.1]), alpha=0.2)
        tensor([0.4745])

    Source: Deng, Cui & Zhu, NeurIPS 2023 (arXiv 2308.10544).
    """
    samples = _sampled_log_probabilities(logits)
    log_likelihood = samples.gather(2, targets.long().expand(len(samples), -1).unsqueeze(2)).squeeze(2)
    expected = _ordered_sum(log_likelihood, dim=0) / len(samples)
    largest = log_likelihood.amax(dim=0)
    log_mean = largest + (_ordered_sum((log_likelihood - largest).exp(), dim=0) / len(samples)).log()
    return alpha * expected - log_mean - (1 - alpha) * irreducible_loss.to(selection_dtype(irreducible_loss))


def _sampled_log_probabilities(logits: Tensor) -> Tensor:
    """(S, B, C) log-probabilities; a (B, C) input is one sample."""
    logits = logits.to(selection_dtype(logits))
    return torch.log_softmax(logits if logits.ndim == 3 else logits.unsqueeze(0), dim=-1)


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy over the last axis; a probability of zero adds nothing."""
    entropies: Tensor = torch.special.entr(probabilities)
    return entropies.sum(dim=-1)


def _ordered_sum(terms: Tensor, *, dim: int) -> Tensor:
    """Sum over one axis in a fixed order, so that equal examples have equal sums in every batch.

    ``sum`` and matrix products may round an example differently in another batch or at another position. Scores of
    equal examples would then differ in the last bit, and several ranks would break ties differently from one process.
    """
    if terms.device.type == "cpu":
        sums = terms.cumsum(dim).select(dim, -1)
        return sums.clone(memory_format=torch.contiguous_format)  # a view would keep all partial sums
    terms = terms.movedim(dim, 0)
    while len(terms) > 1:  # add halves
        half = len(terms) // 2
        terms = torch.cat([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
    return terms[0]
