"""Diverse subsets, whose gradients represent the gradient of all candidates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reducr.functional.losses import selection_dtype

_EXHAUSTED = 1e-10
_TIED = 1e-7  # when one direction remains, all examples gain the same, up to rounding


def last_layer_gram(logits: Tensor, targets: Tensor, features: Tensor) -> Tensor:
    """Inner products of the cross-entropy gradients of all examples with respect to the last, linear layer.

    The gradient of an example is the outer product of ``softmax(z_i) - onehot(y_i)`` and its features ``f_i``, so::

        K_ij = (softmax(z_i) - onehot(y_i)) . (softmax(z_j) - onehot(y_j))  *  f_i . f_j

    Args:
        logits: (B, C).
        targets: (B,) integers in [0, C).
        features: (B, D) inputs of the last layer.

    Returns:
        (B, B) float64.
    """
    residual = torch.softmax(logits.to(selection_dtype(logits)), dim=1).double()
    residual = residual.scatter_add(1, targets.long().unsqueeze(1), -residual.new_ones(len(residual), 1))
    features = features.double()
    return (residual @ residual.T) * (features @ features.T)


def orthogonal_order(gram: Tensor) -> Tensor:
    """Greedy order of the examples: each next one explains most of the part of the summed gradient still unexplained.

    With ``s = sum_i g_i`` over all examples and E an orthonormal basis of the gradients chosen so far, the next is::

        argmax_i | e_i . s |        e_i = (g_i - sum_{e in E} (g_i . e) e) / || ... ||

    A gradient in the span of E gains nothing, however large it is. Once s is explained, the remaining examples are
    ordered among themselves in the same way. Of examples with equal gains, to one part in ten million, the earlier one
    comes first.

    Args:
        gram: (B, B) inner products ``g_i . g_j``, positive semidefinite.

    Returns:
        (B,) int64, a permutation of the positions.

    Source: Hong et al., ICML 2024 (arXiv 2406.04872), the greedy algorithm, computed as a pivoted Cholesky
    factorisation: a step costs B times the number of examples chosen so far.
    """
    products = gram.detach().double().cpu().numpy()
    remaining, order = np.arange(len(products)), np.empty(0, dtype=np.int64)
    while len(remaining):
        pivots = _pivots(products[np.ix_(remaining, remaining)], products[remaining].sum(axis=1))
        if not len(pivots):
            break
        order, remaining = np.concatenate([order, remaining[pivots]]), np.delete(remaining, pivots)
    return torch.from_numpy(np.concatenate([order, remaining])).to(gram.device)


def _pivots(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Rows of ``gram`` in greedy order until they explain a vector whose inner products with all are ``products``."""
    size = len(gram)
    norms, products = gram.diagonal().copy(), products.copy()
    smallest_norms, smallest_product = _EXHAUSTED * norms, _EXHAUSTED * np.abs(products).max()
    factor = np.empty((size, size))
    pivots: list[int] = []
    for step in range(size):
        norms[norms <= smallest_norms] = np.inf  # in the span of the pivots: no gain
        gains = np.abs(products) / np.sqrt(norms)
        best = int((gains >= (1 - _TIED) * gains.max()).argmax())  # the first of equal gains
        if np.isinf(norms[best]) or abs(products[best]) <= smallest_product:
            break
        norm = np.sqrt(norms[best])
        factor[step] = (gram[best] - factor[:step, best] @ factor[:step]) / norm
        products -= factor[step] * (products[best] / norm)
        norms -= factor[step] ** 2
        norms[best] = np.inf
        pivots.append(best)
    return np.array(pivots, dtype=np.int64)
