"""What has been selected, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SelectionReport:
    """What has been selected so far, and what it cost.

    Args:
        num_steps: gradient steps, each of which updated the selector.
        num_batches: batches of candidates.
        num_candidates: candidates seen, on all ranks.
        num_selected: examples selected, on all ranks.
        fraction: num_selected / num_candidates; NaN before the first batch.
        selection_seconds: wall-clock seconds of scoring and choosing on this rank; on a GPU, which works through a
            queue, the time it took to queue the work.
        holdout_seconds: wall-clock seconds of the holdout loss on this rank.
        group_counts: selected examples of each group on all ranks, (G,).
        group_weights: weights of the next selection, (G,).
        num_non_finite: candidates left out because of a NaN or infinite loss.
    """

    num_steps: int
    num_batches: int
    num_candidates: int
    num_selected: int
    fraction: float
    selection_seconds: float
    holdout_seconds: float
    group_counts: list[int]
    group_weights: list[float]
    num_non_finite: int

    def __str__(self) -> str:
        lines = [
            f"{self.num_selected} of {self.num_candidates} candidates selected ({self.fraction:.3f})",
            f"{self.num_batches} batches, {self.num_steps} steps",
            f"{self.selection_seconds:.1f} s selecting, {self.holdout_seconds:.1f} s on the holdout loss",
            f"{self.num_non_finite} candidates left out because their loss was NaN or infinite",
        ]
        groups = enumerate(zip(self.group_counts, self.group_weights, strict=True))
        lines += [f"group {group}: {count} selected, weight {weight:.4f}" for group, (count, weight) in groups]
        return "\n".join(lines)


def by_group(name: str, values: Tensor) -> dict[str, float]:
    """Return ``{"name/0": values[0], ...}``, the log keys of one value per group."""
    return {f"{name}/{group}": value for group, value in enumerate(values.tolist())}
