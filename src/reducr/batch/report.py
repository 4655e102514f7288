"""What has been selected, and what it cost."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from reducr._internal.distributed import all_reduce_sum
from reducr.batch.candidates import Selection
from reducr.batch.nested import send_to_device


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
        num_skipped: batches that were left out because they are too short; see ``short_batches`` of ``Downsampler``.
        num_refreshes: refreshes of the holdout loss, without the evaluation before the first step.
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
    num_skipped: int = 0
    num_refreshes: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.num_selected} of {self.num_candidates} candidates selected ({self.fraction:.3f})",
            f"{self.num_batches} batches, {self.num_steps} steps",
            f"{self.selection_seconds:.1f} s selecting, {self.holdout_seconds:.1f} s on the holdout loss",
            f"{self.num_non_finite} candidates left out because their loss was NaN or infinite",
        ]
        if self.num_skipped:
            lines.append(f"{self.num_skipped} batches skipped because they are too short")
        groups = enumerate(zip(self.group_counts, self.group_weights, strict=True))
        lines += [f"group {group}: {count} selected, weight {weight:.4f}" for group, (count, weight) in groups]
        return "\n".join(lines)


class SelectionLog:
    """Counts what is selected, in all and for the last gradient step.

    Args:
        num_groups: G.
    """

    def __init__(self, num_groups: int) -> None:
        names = ("num_steps", "num_batches", "num_candidates", "num_selected", "num_skipped", "num_refreshes")
        self.counts = dict.fromkeys((*names, "largest_batch"), 0)
        """Totals so far; candidates and selected examples are those of all ranks."""
        self.seconds = {"selection_seconds": 0.0, "holdout_seconds": 0.0}
        """Wall-clock totals of this rank."""
        self.group_counts = torch.zeros(num_groups, dtype=torch.int64)
        self.step_counts = torch.zeros_like(self.group_counts)
        self.logged: tuple[list[Selection], Tensor] = ([], self.step_counts)
        """Selections of the last gradient step, and the selected examples of each group (G,) in them."""
        self.waiting: list[Selection] = []
        """Selections since the last gradient step."""
        self._last = self._step_before = torch.zeros_like(self.group_counts)

    def to(self, device: torch.device) -> None:
        """Move everything to ``device``."""
        self.waiting = [send_to_device(selection, device) for selection in self.waiting]
        self.group_counts, self.step_counts = self.group_counts.to(device), self.step_counts.to(device)
        self._last, self._step_before = self._last.to(device), self._step_before.to(device)

    def add(self, selection: Selection, groups: Tensor, *, sync: bool) -> None:
        """Count a selection of examples in ``groups`` (b,); with ``sync`` those of all ranks."""
        counts = torch.bincount(groups[:0] if selection.is_dummy else groups, minlength=len(self.group_counts))
        self._last = all_reduce_sum(counts) if sync else counts
        self._step_before = self.step_counts
        self._total(selection, 1)
        self.group_counts = self.group_counts + self._last
        self.step_counts = self.step_counts + self._last if self.waiting else self._last
        self.waiting.append(selection)

    def take_back(self) -> None:
        """Forget the last selection."""
        self._total(self.waiting.pop(), -1)
        self.group_counts, self.step_counts = self.group_counts - self._last, self._step_before
        self._last = torch.zeros_like(self._last)

    def end_step(self) -> None:
        """Count a gradient step with the waiting selections."""
        self.logged, self.waiting = (self.waiting, self.step_counts), []
        self.counts["num_steps"] += 1

    def report(self, group_weights: Tensor, *, num_non_finite: int) -> SelectionReport:
        """Return the totals so far."""
        counts = {name: count for name, count in self.counts.items() if name != "largest_batch"}
        seen = counts["num_candidates"]
        return SelectionReport(
            **counts,
            **self.seconds,  # type: ignore[arg-type]  # the names of seconds
            fraction=counts["num_selected"] / seen if seen else float("nan"),
            group_counts=self.group_counts.tolist(),
            group_weights=group_weights.tolist(),
            num_non_finite=num_non_finite,
        )

    def metrics(self, *, num_non_finite: float) -> dict[str, float]:
        """Return what to log for the last gradient step; empty before the first."""
        selections, counts = self.logged
        if not selections:
            return {}
        num_candidates = sum(selection.num_candidates or 0 for selection in selections)
        scores = torch.cat([selection.scores[selection.positions] for selection in selections])
        return {
            "select/fraction": sum(selection.num_selected or 0 for selection in selections) / num_candidates,
            "select/num_non_finite": num_non_finite,
            "select/mean_score": scores.mean().item(),
            "time/selection_seconds": self.seconds["selection_seconds"],
            **by_group("select/group_count", counts),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the totals and the waiting selections."""
        return {
            "waiting": [asdict(selection) for selection in self.waiting],
            "counts": dict(self.counts),
            "seconds": dict(self.seconds),
            "group_counts": self.group_counts.clone(),
            "step_counts": self.step_counts.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, also of an earlier version, which counted less."""
        # an earlier version refreshed without counting
        earlier = {"num_skipped": 0, "num_refreshes": min(1, state["counts"]["num_steps"]), "largest_batch": 0}
        self.counts.update(earlier | state["counts"])
        self.seconds.update(state["seconds"])
        self.waiting = [Selection(**copy.deepcopy(selection)) for selection in state["waiting"]]
        device = self.group_counts.device
        self.group_counts, self.step_counts = (
            state[name].to(device, copy=True) for name in ("group_counts", "step_counts")
        )
        self.logged = ([], self.step_counts)

    def _total(self, selection: Selection, sign: int) -> None:
        self.counts["num_batches"] += sign
        self.counts["num_candidates"] += sign * (selection.num_candidates or 0)
        self.counts["num_selected"] += sign * (selection.num_selected or 0)


def by_group(name: str, values: Tensor) -> dict[str, float]:
    """Return ``{"name/0": values[0], ...}``, the log keys of one value per group."""
    return {f"{name}/{group}": value for group, value in enumerate(values.tolist())}
