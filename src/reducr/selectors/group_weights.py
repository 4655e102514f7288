"""Group weights as state: a running payoff per group, read as multiplicative weights."""

from __future__ import annotations

from torch import Tensor

from reducr import functional
from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_num_groups, group_vector, is_finite_number


class GroupWeights(FixedDtypeBuffers):
    """Multiplicative weights over G groups: ``w = softmax(-step_size * cumulative_payoff)``.

    Every update is ``cumulative_payoff = payoff_decay * cumulative_payoff + payoff``.

    State:
        cumulative_payoff: (G,) float64, the sum of the payoffs of all updates, the older ones decayed; summed over
            ranks.

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0, per nat of payoff.
        initial_payoff: (G,) where the running payoff starts; None for zeros, which gives equal weights. It decays
            like the payoffs after it.
        payoff_decay: in (0, 1]; 1 forgets nothing, below it the weights remember about 1 / (1 - payoff_decay) updates.

    Raises:
        ValueError: if ``step_size`` is negative or not finite, ``payoff_decay`` is outside (0, 1], or
            ``initial_payoff`` has another length than G or is not finite.

    Example:
        >>> weights = GroupWeights(2, step_size=1.0)
        >>> weights.update(torch.tensor([0.0, 1.0]))
        >>> weights.weights()
        tensor([0.7311, 0.2689], dtype=torch.float64)
    """

    cumulative_payoff: Tensor

    def __init__(
        self,
        num_groups: int,
        *,
        step_size: float,
        initial_payoff: Tensor | list[float] | None = None,
        payoff_decay: float = 1.0,
    ) -> None:
        super().__init__()
        check_num_groups(num_groups)
        if not (is_finite_number(step_size) and step_size >= 0):
            raise ValueError(f"step_size must be a finite number of at least 0; got {step_size}.")
        if not (is_finite_number(payoff_decay) and 0 < payoff_decay <= 1):
            raise ValueError(
                "payoff_decay must be in (0, 1]: 1 forgets nothing, 0.99 remembers about the last 100 steps; "
                f"got {payoff_decay}."
            )
        self.step_size = float(step_size)
        self.payoff_decay = float(payoff_decay)
        self.register_buffer("cumulative_payoff", group_vector(initial_payoff, num_groups, "initial_payoff"))

    def weights(self) -> Tensor:
        """(G,) float64 on the simplex, from the payoff up to and including the last update."""
        return functional.group_weights(self.cumulative_payoff, step_size=self.step_size)

    def update(self, payoff: Tensor) -> None:
        """Decay the running payoff and add ``payoff`` (G,) to it.

        Raises:
            ValueError: for a payoff of another shape.
        """
        if payoff.shape != self.cumulative_payoff.shape:
            raise ValueError(
                f"payoff must hold one value for each of the {len(self.cumulative_payoff)} groups; got shape "
                f"{tuple(payoff.shape)}."
            )
        if self.payoff_decay < 1:
            self.cumulative_payoff.mul_(self.payoff_decay)
        self.cumulative_payoff.add_(payoff)
