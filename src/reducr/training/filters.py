"""Ways to turn beliefs in labels into weights of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 1e-6
_MOST_DROPPED = 0.9


@dataclass(frozen=True)
class Filter:
    """A way to turn the beliefs in the labels into weights of the examples.

    Args:
        power: weights are ``p ** power``, with p the probability of the label.
        dropped: of every class so many times as many examples get no weight as the model disagrees with, the ones
            whose labels it believes least; 0 for none.
    """

    power: float = 0.0
    dropped: float = 0.0

    def weights(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return (N,) weights in [0, 1], from probabilities (N, C) and labels (N,)."""
        belief = probabilities.gather(1, targets[:, None])[:, 0].double()
        weights = belief.clamp(min=_SMALLEST) ** self.power
        if not self.dropped:
            return weights
        disagrees = probabilities.argmax(dim=1) != targets
        for label in torch.bincount(targets).nonzero().flatten().tolist():
            members = torch.nonzero(targets == label).flatten()
            wanted = self.dropped * float(disagrees[members].sum())
            num_dropped = int(min(wanted, _MOST_DROPPED * len(members)))
            weights[members[belief[members].argsort(stable=True)[:num_dropped]]] = 0.0
        return weights


FILTERS: Mapping[str, Filter] = {
    "none": Filter(),
    "belief^0.25": Filter(power=0.25),
    "belief^0.5": Filter(power=0.5),
    "belief": Filter(power=1.0),
    "belief^2": Filter(power=2.0),
    "drop": Filter(dropped=1.0),
    "drop 1.5": Filter(dropped=1.5),
}
"""The filters that are tried, from none to the strongest of each kind."""
DEFAULT = "belief^0.5"
"""The filter if there are too few held-back examples: that of ``priority_sampling`` with its default temperature."""
FEW_EXAMPLES = 10
"""Held-back examples of the smallest group below which filters are not judged."""
