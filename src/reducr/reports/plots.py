"""All plots of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reducr.reports.class_plots import class_accuracies, confusion_matrices, group_lines
from reducr.reports.comparison import Comparison
from reducr.reports.curve_plots import accuracy_curves, cost_bars
from reducr.reports.figure import Plot, report_style
from reducr.reports.selection_plots import corrupted_shares, loss_histograms, repeated_selections

_PLOTS: tuple[Callable[[Comparison], Iterator[Plot]], ...] = (
    accuracy_curves,
    class_accuracies,
    group_lines,
    corrupted_shares,
    repeated_selections,
    loss_histograms,
    confusion_matrices,
    cost_bars,
)


def plots(comparison: Comparison) -> list[Plot]:
    """Every plot for which the runs have data."""
    with report_style():
        return [plot for draw in _PLOTS for plot in draw(comparison)]
