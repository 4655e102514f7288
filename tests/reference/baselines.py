"""Rules of other papers in plain loops over Python floats."""

import math

from reference.scores import cross_entropy, softmax


def drop_densities(num_examples: list[int], error: list[float], density: float) -> list[float]:
    """Share of each class that DRoP keeps (arXiv 2404.05579, Algorithm 1); ``error`` is 1 minus the recall."""
    densities = [0.0] * len(num_examples)
    unsaturated = {k for k, number in enumerate(num_examples) if number}
    excess = density * sum(num_examples)
    while excess > 1e-9:
        total = sum(num_examples[k] * error[k] for k in unsaturated)
        density_to_share = excess
        for k in sorted(unsaturated):
            increase = density_to_share * error[k] / total
            densities[k] += increase
            excess -= num_examples[k] * increase
            if densities[k] > 1:
                unsaturated = unsaturated - {k}
                excess += num_examples[k] * (densities[k] - 1)
                densities[k] = 1.0
    return densities


def quota_counts(num_examples: list[int], quotas: list[float], num_selected: int) -> list[float]:
    """Expected number of examples of each group: its quota of what groups that run out leave, which are complete."""
    counts, is_open = [0.0] * len(quotas), [n > 0 for n in num_examples]
    while True:
        left = num_selected - sum(n for n, still in zip(num_examples, is_open, strict=True) if not still)
        total = sum(quota for quota, still in zip(quotas, is_open, strict=True) if still)
        for g, n in enumerate(num_examples):
            counts[g] = left * quotas[g] / total if is_open[g] else float(n)
        too_many = [g for g, n in enumerate(num_examples) if is_open[g] and counts[g] >= n]
        if not too_many:
            return counts
        for g in too_many:
            is_open[g], counts[g] = False, float(num_examples[g])
        if not any(is_open):
            return counts


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def last_layer_gradient(logits: list[float], target: int, features: list[float]) -> list[float]:
    """Flat gradient of the cross-entropy with respect to the weights of the last layer."""
    residual = [p - (c == target) for c, p in enumerate(softmax(logits))]
    return [r * f for r in residual for f in features]


def divbs_order(gradients: list[list[float]]) -> list[int]:
    """Greedy order: next is the gradient whose new part (Gram-Schmidt) has the largest product with the total."""
    total = [sum(column) for column in zip(*gradients, strict=True)]
    remaining, order, basis = list(range(len(gradients))), [], []
    while remaining:
        gains, directions = {}, {}
        for i in remaining:
            new = gradients[i]
            for direction in [*basis, *basis]:  # twice, to stay orthogonal in floating point
                share = dot(new, direction)
                new = [n - share * d for n, d in zip(new, direction, strict=True)]
            norm = math.sqrt(dot(new, new))
            if norm < 1e-6 * math.sqrt(dot(gradients[i], gradients[i])):
                continue
            gains[i], directions[i] = abs(dot(new, total)) / norm, [n / norm for n in new]
        largest = max(gains.values(), default=0.0)
        if largest < 1e-9 and not basis:
            return order + remaining
        if largest < 1e-9:
            basis = []
            continue
        best = min(i for i in remaining if gains.get(i, 0.0) >= largest * (1 - 1e-7))
        basis.append(directions[best])
        order.append(best)
        remaining.remove(best)
    return order


def group_dro_step(
    losses: list[float], groups: list[int], cumulative_loss: list[float], *, step_size: float
) -> tuple[list[float], list[float], float]:
    """Group DRO (arXiv 1911.08731, Algorithm 1) on a mini-batch: cumulative losses, weights, weighted loss."""
    means = []
    for g in range(len(cumulative_loss)):
        own = [loss for loss, group in zip(losses, groups, strict=True) if group == g]
        means.append(sum(own) / len(own) if own else 0.0)
    cumulative_loss = [c + m for c, m in zip(cumulative_loss, means, strict=True)]
    powers = [math.exp(step_size * c) for c in cumulative_loss]
    weights = [power / sum(powers) for power in powers]
    return cumulative_loss, weights, dot(weights, means)


def infobatch_weights(losses: list[float], positions: list[int], *, prune_probability: float) -> list[float]:
    """InfoBatch weights (arXiv 2303.04947): examples below the mean loss make up for the pruned ones."""
    mean = sum(losses) / len(losses)
    return [1 / (1 - prune_probability) if losses[i] < mean else 1.0 for i in positions]


def rcap_quotas(losses: list[float], groups: list[int], *, num_groups: int, largest_loss: float) -> list[float]:
    """RCAP quotas (arXiv 2606.11761), with the mean as the aggregated loss of a group."""
    parts = []
    for g in range(num_groups):
        own = [min(loss, largest_loss) for loss, group in zip(losses, groups, strict=True) if group == g]
        prior = len(own) / len(losses)
        parts.append(math.sqrt(prior * sum(own) / len(own)) if own else 0.0)
    return [part / sum(parts) for part in parts]


def bayesian_score(samples: list[list[float]], target: int, irreducible_loss: float, *, alpha: float) -> float:
    """Deng et al. (arXiv 2308.10544): alpha E log p + (1 - alpha) log p_irreducible - log E p."""
    losses = [cross_entropy(logits, target) for logits in samples]
    expected = -sum(losses) / len(losses)
    log_mean = math.log(sum(math.exp(-loss) for loss in losses) / len(losses))
    return alpha * expected - (1 - alpha) * irreducible_loss - log_mean


def inclusion_probabilities(powers: list[float], num_selected: int) -> list[float]:
    """Probability that each example is selected by draws in proportion to the powers of the remaining examples."""
    probabilities = [0.0] * len(powers)

    def draw(selected: tuple[int, ...], probability: float) -> None:
        if len(selected) == num_selected:
            for i in selected:
                probabilities[i] += probability
            return
        remaining = [i for i in range(len(powers)) if i not in selected]
        total = sum(powers[i] for i in remaining)
        for i in remaining:
            draw((*selected, i), probability * powers[i] / total)

    draw((), 1.0)
    return probabilities
