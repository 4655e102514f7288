"""Tables of cost, and of what was selected."""

from __future__ import annotations

import numpy as np

from reducr.reports.comparison import Comparison
from reducr.reports.tables import Table, estimate_cell, mean_cell


def cost_table(comparison: Comparison) -> Table:
    """Seconds that each part of a training took, mean over seeds."""
    lines = []
    for series in comparison.series:
        seconds = {part: series.values(f"{part}_seconds") for part in ("irreducible", "selection", "training")}
        total = series.values("total_seconds")
        # the training of the irreducible model counts as its irreducible stage as well, so the rest may be negative
        rest = [max(0.0, total[seed] - sum(part[seed] for part in seconds.values())) for seed in total]
        parts = [*(list(part.values()) for part in seconds.values()), rest, list(total.values())]
        steps = mean_cell(list(series.values("steps").values()), ".0f")
        lines.append((series.label, steps, *(mean_cell(part, ".1f") for part in parts)))
    return Table(
        "Where the time went",
        ("method", "steps", "irreducible stage", "scoring and selection", "training", "evaluation and rest", "total"),
        tuple(lines),
        name="seconds",
        note="Wall-clock seconds, mean over seeds. Each method that uses the irreducible stage is charged for all of "
        "it. The rest is holdout evaluation, data loading, logging and checkpoints.",
    )


def selection_table(comparison: Comparison) -> Table:
    """How often examples were selected, and how many of them are corrupted."""
    lines = []
    for series in comparison.series:
        trainings = [t for t in series.trainings.values() if t.times_selected is not None]
        if not trainings:
            continue
        counts = [t.times_selected for t in trainings if t.times_selected is not None]
        flags = [t.example_array("is_corrupted") for t in trainings]
        selected_shares = [
            float(flag[np.repeat(np.arange(len(flag)), count)].mean())
            for flag, count in zip(flags, counts, strict=True)
            if flag is not None and count.any()
        ]
        lines.append(
            (
                series.label,
                mean_cell([int(count.sum()) for count in counts], ".0f"),
                mean_cell([float((count > 0).mean()) for count in counts], ".3f"),
                mean_cell([float(count[count > 0].mean()) for count in counts if count.any()], ".1f"),
                mean_cell([int(count.max()) for count in counts], ".0f"),
                mean_cell(selected_shares, ".3f"),
                mean_cell([float(flag.mean()) for flag in flags if flag is not None], ".3f"),
            )
        )
    return Table(
        "How often examples were selected, and how many of them are corrupted",
        (
            "method",
            "selections",
            "share of examples ever selected",
            "mean times each was selected",
            "most times selected",
            "corrupted among the selected",
            "corrupted among all",
        ),
        tuple(lines),
        name="selection",
        note="Mean over seeds. An example counts each time it is selected. Corrupted examples are those with a label "
        "or an input that is known to have been changed.",
    )


def selected_groups_table(comparison: Comparison) -> Table:
    """Share of each group among the selected examples."""
    names = comparison.group_names
    labels: list[str] = []
    columns: list[np.ndarray] = []
    all_examples: list[np.ndarray] = []
    for series in comparison.series:
        shares = []
        for training in series.trainings.values():
            times, groups = training.times_selected, training.example_array("group")
            if times is None or groups is None or not times.any():
                continue
            shares.append(np.bincount(groups, weights=times, minlength=len(names)) / times.sum())
            if not columns and training.train_on == "train":
                all_examples.append(np.bincount(groups, minlength=len(names)) / len(groups))
        if shares:
            labels.append(series.label)
            columns.append(np.array(shares))
    values = [np.array(all_examples).reshape(-1, len(names)), *columns]
    lines = [
        (name, *(estimate_cell(by_seed[:, group]) for by_seed in values))
        for group, name in enumerate(names if columns else [])
    ]
    return Table(
        f"Share of each {comparison.group_noun} among the selected",
        (comparison.group_noun, "all examples", *labels),
        tuple(lines),
        name="selected_by_class",
        note="By the labels of the training part, including wrong ones; mean over seeds.",
        has_bars=True,
    )
