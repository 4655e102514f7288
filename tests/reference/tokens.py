"""Losses of sequences, tokens and pixels over Python floats, one number after another."""

import math


def log_probability(logits, label):
    """log softmax(logits)[label]."""
    largest = max(logits)
    return logits[label] - largest - math.log(sum(math.exp(value - largest) for value in logits))


def token_losses(logits, labels, *, ignore_index=-100, is_causal=True):
    """[{place: loss}] of each sequence: the places that have a label, and tokens before them if causal."""
    losses = []
    for sequence, own in zip(logits, labels, strict=True):
        places = {}
        for place, label in enumerate(own):
            source = place - 1 if is_causal else place
            if label != ignore_index and source >= 0:
                places[place] = -log_probability(sequence[source], label)
        losses.append(places)
    return losses


def sequence_losses(logits, labels, **options):
    """Mean over the labelled tokens of each sequence; 0 without any."""
    return [sum(places.values()) / len(places) if places else 0.0 for places in token_losses(logits, labels, **options)]


def pixel_losses(logits, targets, *, ignore_index=-100):
    """Mean over the labelled pixels of each image, from logits [image][class][row][column]."""
    means = []
    for image, own in zip(logits, targets, strict=True):
        losses = [
            -log_probability([plane[row][column] for plane in image], target)
            for row, line in enumerate(own)
            for column, target in enumerate(line)
            if target != ignore_index
        ]
        means.append(sum(losses) / len(losses) if losses else 0.0)
    return means


def by_token(model_loss, irreducible_loss, *, fraction, weights=None):
    """The (sequence, place) pairs that a selection by token keeps: the best excess losses of all sequences together.

    Args:
        model_loss: [{place: loss}] of each sequence.
        irreducible_loss: likewise; with ``weights`` one for each group.
        fraction: of all labelled tokens.
        weights: of the groups; None for the plain excess loss.
    """
    scores = {}
    for number, places in enumerate(model_loss):
        for place, loss in places.items():
            if weights is None:
                scores[number, place] = loss - irreducible_loss[number][place]
            else:
                excess = [max(0.0, loss - of_group[number][place]) for of_group in irreducible_loss]
                scores[number, place] = sum(w * e for w, e in zip(weights, excess, strict=True))
    best = sorted(scores, key=lambda pair: -scores[pair])
    return set(best[: max(1, math.floor(fraction * len(scores) + 1e-9))])
