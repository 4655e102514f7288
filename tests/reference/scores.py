"""The other scores and the adjusted irreducible losses in plain loops over Python floats."""

import math


def softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    powers = [math.exp(value - largest) for value in logits]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: list[float], target: int) -> float:
    return -math.log(softmax(logits)[target])


def gradient_norm(logits: list[float], target: int) -> float:
    """|| softmax(logits) - onehot(y) ||_2."""
    total = 0.0
    for outcome, probability in enumerate(softmax(logits)):
        total += (probability - (1.0 if outcome == target else 0.0)) ** 2
    return math.sqrt(total)


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def predictive_entropy(samples: list[list[float]]) -> float:
    """Entropy of the mean prediction of one example's MC-dropout logits (S, C)."""
    predictions = [softmax(logits) for logits in samples]
    mean = [sum(column) / len(samples) for column in zip(*predictions, strict=True)]
    return entropy(mean)


def conditional_entropy(samples: list[list[float]]) -> float:
    """Mean entropy of the predictions of one example's MC-dropout logits (S, C)."""
    return sum(entropy(softmax(logits)) for logits in samples) / len(samples)


def mutual_information(samples: list[list[float]]) -> float:
    return predictive_entropy(samples) - conditional_entropy(samples)


def max_min_payoff(model_loss: float, irreducible_row: list[float], holdout_loss: list[float]) -> float:
    """min_c (l_i - r_ic - h_c)."""
    return min(model_loss - r - h for r, h in zip(irreducible_row, holdout_loss, strict=True))


def adjusted_losses(
    logits: list[float], target: int, *, gradient_weight: float, group_of_target: list[int], num_groups: int
) -> list[float]:
    """-log q_c(y | x) for every group c, with q_c(y | x) proportional to omega_c(y) p(y | x) written out."""
    probabilities = softmax(logits)
    losses = []
    for c in range(num_groups):
        weighted = []
        for outcome, probability in enumerate(probabilities):
            omega = gradient_weight if group_of_target[outcome] == c else 1.0
            weighted.append(omega * probability)
        losses.append(-math.log(weighted[target] / sum(weighted)))
    return losses


def adjusted_joint_losses(logits: list[list[float]], target: int, *, gradient_weight: float) -> list[float]:
    """The same for a model that predicts (target, group): weight the outcomes of group c, sum over groups."""
    num_targets, num_groups = len(logits), len(logits[0])
    flat = softmax([value for row in logits for value in row])
    joint = [flat[y * num_groups : (y + 1) * num_groups] for y in range(num_targets)]
    losses = []
    for c in range(num_groups):
        target_sums = [0.0] * num_targets
        for y in range(num_targets):
            for k in range(num_groups):
                target_sums[y] += (gradient_weight if k == c else 1.0) * joint[y][k]
        losses.append(-math.log(target_sums[target] / sum(target_sums)))
    return losses
