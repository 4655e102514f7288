"""One whole REDUCR step in plain loops over Python floats, written from docs/method.md section 2 alone."""

import math
from typing import NamedTuple


class ReferenceOptions(NamedTuple):
    step_size: float
    clip: bool = True
    use_holdout: bool = True
    use_irreducible: bool = True
    use_model_loss: bool = True
    holdout_weighting: str = "per_point"
    payoff_decay: float = 1.0


class ReferenceStep(NamedTuple):
    weights_used: list[float]
    """w of this step, from the payoff of all steps before."""
    scores: list[float]
    picks: list[int]
    payoff: list[float]
    cumulative_payoff: list[float]
    weights_next: list[float]


def weights_of(cumulative_payoff: list[float], step_size: float) -> list[float]:
    """w = softmax(-eta * cum), in log space."""
    logs = [-step_size * value for value in cumulative_payoff]
    largest = max(logs)
    log_total = largest + math.log(sum(math.exp(value - largest) for value in logs))
    return [math.exp(value - log_total) for value in logs]


def excess_of(model_loss: float, irreducible_loss: float, options: ReferenceOptions) -> float:
    """excess_ic = max(0, l_i - r_ic); the options can switch off either term and the max."""
    excess = 0.0
    if options.use_model_loss:
        excess += model_loss
    if options.use_irreducible:
        excess -= irreducible_loss
    return max(0.0, excess) if options.clip else excess


def reducr_step(
    model_loss: list[float],
    group_irreducible_loss: list[list[float]],
    group_holdout_loss: list[float],
    cumulative_payoff: list[float],
    *,
    num_selected: int,
    options: ReferenceOptions,
) -> ReferenceStep:
    """The selection, its payoff and the weights afterwards; ``cumulative_payoff`` is not changed."""
    num_groups = len(cumulative_payoff)
    weights = weights_of(cumulative_payoff, options.step_size)
    scores = []
    for i in range(len(model_loss)):
        score = 0.0
        for c in range(num_groups):
            score += weights[c] * excess_of(model_loss[i], group_irreducible_loss[i][c], options)
        scores.append(score)

    by_score = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    picks = by_score[:num_selected]

    payoff = []
    for c in range(num_groups):
        value = 0.0
        for i in picks:
            value += excess_of(model_loss[i], group_irreducible_loss[i][c], options)
            if options.use_holdout and options.holdout_weighting == "per_point":
                value -= group_holdout_loss[c]
        if options.use_holdout and options.holdout_weighting == "per_step":
            value -= group_holdout_loss[c]
        payoff.append(value)

    after = [options.payoff_decay * before + value for before, value in zip(cumulative_payoff, payoff, strict=True)]
    return ReferenceStep(weights, scores, picks, payoff, after, weights_of(after, options.step_size))
