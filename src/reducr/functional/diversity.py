"""Subsets whose gradients together stand for those of all candidates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reducr.functional.losses import selection_dtype

_EXHAUSTED = 1e-10
_TIED = 1e-7  # when one direction is left, all points gain the same, up to rounding


def last_layer_gram(logits: Tensor, targets: Tensor, features: Tensor) -> Tensor:
    """Inner products of the gradients of all points' cross-entropies by the weights of the last, linear layer.

    The gradient of a point is the outer product of ``softmax(z_i) - onehot(y_i)`` and its features ``f_i``, so::

        K_ij = (softmax(z_i) - onehot(y_i)) . (softmax(z_j) - onehot(y_j))  *  f_i . f_j

    Args:
        logits: (B, C).
        targets: (B,) integers in [0, C).
        features: (B, D), what the last layer makes the logits of.

    Returns:
        (B, B) float64.
    """
    residual = torch.softmax(logits.to(selection_dtype(logits)), dim=1).double()
    residual = residual.scatter_add(1, targets.long().unsqueeze(1), -residual.new_ones(len(residual), 1))
    features = features.double()
    return (residual @ residual.T) * (features @ features.T)


def orthogonal_order(gram: Tensor) -> Tensor:
    """The points in the order in which they, one after another, stand for most of what is left of the sum of all.

    With ``s = sum_i g_i`` over all points and E an orthonormal basis of the gradients taken so far, the next one is::

        argmax_i | e_i . s |        e_i = (g_i - sum_{e in E} (g_i . e) e) / || ... ||

    so a gradient that those taken span already counts for nothing, however large it is. When nothing is left of s, the
    rest is put in order among itself in the same way. Of points that gain the same, to one part in ten million, the
    earlier one comes first.

    Args:
        gram: (B, B) inner products ``g_i . g_j``, positive semidefinite.

    Returns:
        (B,) int64, a permutation of the positions.

    Source: Hong et al., ICML 2024 (arXiv 2406.04872), the greedy algorithm. Done as a pivoted Cholesky factorisation,
    so that a step costs B times the number of points taken.
    """
    products = gram.detach().double().cpu().numpy()
    left, order = np.arange(len(products)), np.empty(0, dtype=np.int64)
    while len(left):
        taken = _pivots(products[np.ix_(left, left)], products[left].sum(axis=1))
        if not len(taken):
            break
        order, left = np.concatenate([order, left[taken]]), np.delete(left, taken)
    return torch.from_numpy(np.concatenate([order, left])).to(gram.device)


def _pivots(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Places taken until nothing is left of the sum, whose inner products with all points are ``products``."""
    size = len(gram)
    norms, products = gram.diagonal().copy(), products.copy()
    least, smallest_product = _EXHAUSTED * norms, _EXHAUSTED * np.abs(products).max()
    factor = np.empty((size, size))
    taken: list[int] = []
    for number in range(size):
        norms[norms <= least] = np.inf  # these gain nothing any more
        gains = np.abs(products) / np.sqrt(norms)
        best = int((gains >= (1 - _TIED) * gains.max()).argmax())  # the first
        if np.isinf(norms[best]) or abs(products[best]) <= smallest_product:
            break
        norm = np.sqrt(norms[best])
        factor[number] = (gram[best] - factor[:number, best] @ factor[:number]) / norm
        products -= factor[number] * (products[best] / norm)
        norms -= factor[number] ** 2
        norms[best] = np.inf
        taken.append(best)
    return np.array(taken, dtype=np.int64)
