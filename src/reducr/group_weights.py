"""Group weights as state: a running payoff per group, read as multiplicative weights."""

from __future__ import annotations

import math

from torch import Tensor

from reducr import functional
from reducr.checks import check_num_groups, group_vector
from reducr.state import ExactState


class GroupWeights(ExactState):
    """Multiplicative weights over G groups: ``w = softmax(-step_size * cumulative_payoff)``.

    State:
        cumulative_payoff: (G,) float64, the sum of the payoffs of all updates; summed over ranks.

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0, per nat of payoff.
        initial_payoff: (G,) where the running payoff starts; None for zeros, which gives equal weights.

    Raises:
        ValueError: if ``step_size`` is negative or not finite, or ``initial_payoff`` has another length than G or
            is not finite.

    Example:
        >>> weights = GroupWeights(2, step_size=1.0)
        >>> weights.update(torch.tensor([0.0, 1.0]))
        >>> weights.weights()
        tensor([0.7311, 0.2689], dtype=torch.float64)
    """

    cumulative_payoff: Tensor

    def __init__(
        self, num_groups: int, *, step_size: float, initial_payoff: Tensor | list[float] | None = None
    ) -> None:
        super().__init__()
        check_num_groups(num_groups)
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ValueError(f"step_size must be a finite number of at least 0; got {step_size}.")
        self.step_size = float(step_size)
        self.register_buffer("cumulative_payoff", group_vector(initial_payoff, num_groups, "initial_payoff"))

    def weights(self) -> Tensor:
        """(G,) float64 on the simplex, from the payoff up to and including the last update."""
        return functional.group_weights(self.cumulative_payoff, step_size=self.step_size)

    def update(self, payoff: Tensor) -> None:
        """Add ``payoff`` (G,) to the running payoff."""
        self.cumulative_payoff += payoff.to(self.cumulative_payoff)
