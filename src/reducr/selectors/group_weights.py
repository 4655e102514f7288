"""Group weights as state: multiplicative weights of a running payoff per group."""

from __future__ import annotations

from torch import Tensor

from reducr import functional
from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_num_groups, group_vector, is_finite_number


class GroupWeights(FixedDtypeBuffers):
    """Multiplicative weights over G groups: ``w = softmax(-step_size * cumulative_payoff)``.

    An update sets ``cumulative_payoff = payoff_decay * cumulative_payoff + payoff``.

    State:
        cumulative_payoff: (G,) float64, the decayed sum of all payoffs; summed over ranks.

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0, per nat of payoff.
        initial_payoff: (G,) initial value, which decays as well; None for zeros, which gives equal weights.
        payoff_decay: in (0, 1]; 1 forgets nothing. Below 1 the weights remember about 1 / (1 - payoff_decay) updates.

    Raises:
        ValueError: for a value outside its range, or an ``initial_payoff`` that is not G finite numbers.

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
        """Weights (G,) float64 on the simplex, after the last update."""
        return functional.group_weights(self.cumulative_payoff, step_size=self.step_size)

    def update(self, payoff: Tensor) -> None:
        """Decay the cumulative payoff and add ``payoff`` (G,).

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
