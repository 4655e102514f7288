"""The plots of a comparison, as matplotlib figures: legible on light and dark ground, in black and white, and small."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.patches
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reducr._internal.files import replaced_atomically, write_text_atomically
from reducr.reports.curves import accuracy_source, mean_curve
from reducr.reports.run_reader import Comparison, Series, Training
from reducr.reports.tables import confusion, worst_class

# each has a contrast of at least 3 with white and with a dark page, and its own dashes, marker and hatching
REDUCR_COLOUR = "#d9480f"
COLOURS = (
    "#2b7bd3", "#2a9152", "#9a5bd0", "#8c7a14", "#148c9c", "#c4497f", "#7b8087", "#5b6fe0", "#b0602f", "#4b8a10",
)  # fmt: skip
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX<>*"
_HATCHES = ("", "///", "---", "\\\\\\", "|||", "xxx", "+++")
_INK = "#111213"  # becomes the page's own
_GRID = "#8a8f98"
_SIZE = (5.0, 3.5)  # inches; small, so that letters are large enough on a phone
# more classes than this are not named one by one
MANY = 20
_NUM_NAMED = 5
_LONGEST_NAME = 24
_LEAST_LOSS = 1e-4  # nats; smaller ones are drawn as this
_LABEL_GAP = 0.045  # of the largest value
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "reducr",
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Plot:
    """A figure with what a reader without it must know.

    Args:
        name: of its files, without ending.
        caption: what it shows.
        alternative: what is to be seen, for those who cannot see it.
        figure: the picture.
    """

    name: str
    caption: str
    alternative: str
    figure: Figure

    def svg(self) -> str:
        """As SVG, whole and without anything outside."""
        content = BytesIO()
        with _drawing():
            self.figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = content.getvalue().decode()
        return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)

    def inline_svg(self, prefix: str) -> str:
        """As an element of a page: in the page's colour, as wide as its box, its ids beginning with ``prefix``."""
        text = self.svg()
        text = text[text.index("<svg") :].replace(_INK, "currentColor")
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
        head, rest = text.split(">", 1)
        head = re.sub(r' (?:width|height)="[^"]*"', "", head)
        return f'{head} role="img" aria-label="{escape(self.alternative)}">{rest}'

    def save(self, folder: Path) -> None:
        """Write ``NAME.svg`` and ``NAME.png``."""
        write_text_atomically(folder / f"{self.name}.svg", self.svg())
        with _drawing(), replaced_atomically(folder / f"{self.name}.png") as temporary:
            self.figure.savefig(temporary, format="png", dpi=160, facecolor="white")


def plots(comparison: Comparison) -> list[Plot]:
    """Every plot that the runs hold something for."""
    makers: tuple[Callable[[Comparison], Iterator[Plot]], ...] = (
        _accuracy_curves,
        _class_bars,
        _weights,
        _corrupted,
        _repeats,
        _losses,
        _confusions,
        _seconds,
    )
    with mpl.rc_context(_STYLE):
        return [plot for make in makers for plot in make(comparison)]


def _accuracy_curves(comparison: Comparison) -> Iterator[Plot]:
    source = accuracy_source(comparison)
    if source is None:
        return
    for what, name in (("worst class", "worst_class_accuracy"), ("mean", "mean_accuracy")):
        for against, unit in (("step", "steps"), ("seconds", "seconds")):
            figure, axes = _figure()
            ends = []
            for place, series in enumerate(comparison.series):
                curve = mean_curve(series, name, source=source, against=against)
                if curve is None:
                    continue
                places, values, deviation = curve
                style = _line_style(place, series)
                axes.plot(places, values, label=series.label, markevery=max(1, len(places) // 6), markersize=4, **style)
                if series.is_reducr:
                    axes.fill_between(
                        places, values - deviation, values + deviation, color=style["color"], alpha=0.18, linewidth=0
                    )
                ends.append(f"{series.label} {values[-1]:.2f}")
            if not ends:
                continue
            axes.set_ylim(0, 1)
            axes.set_xlabel(unit if against == "step" else "seconds, irreducible stage included")
            axes.set_ylabel(f"{what} {source} accuracy")
            _legend(axes)
            title = f"{what.capitalize()} {source} accuracy against {unit}"
            told = " The band is one standard deviation of REDUCR." if comparison.reducr is not None else ""
            yield Plot(
                f"{name.removesuffix('_accuracy')}_by_{unit}",
                f"{title}, mean over seeds.{told}",
                f"{title}. At the end: {', '.join(ends)}.",
                figure,
            )


def _class_bars(comparison: Comparison) -> Iterator[Plot]:
    names, _ = comparison.names
    labels = [as_text(name) for name in names]
    found = []
    for place, series in enumerate(comparison.series):
        accuracies = [values for one in series.trainings.values() if (values := one.class_accuracy()) is not None]
        if accuracies:
            # classes without test points are left out
            found.append((place, series, np.ma.masked_invalid(np.array(accuracies))))
    if not found:
        return
    figure, axes = _figure(width=9.0)
    told = []
    for position, (place, series, by_seed) in enumerate(found):
        accuracies = by_seed.mean(axis=0)
        style = _line_style(place, series)
        worst = int(accuracies.filled(np.inf).argmin())
        told.append(f"{series.label} worst in {names[worst]} with {accuracies[worst]:.2f}")
        if len(names) > MANY:
            axes.plot(np.sort(accuracies.compressed()), label=series.label, **(style | {"marker": ""}))
            continue
        width = 0.86 / len(found)
        centres = np.arange(len(names)) + (position - (len(found) - 1) / 2) * width
        axes.bar(
            centres,
            accuracies.filled(0),
            width * 0.92,
            color=style["color"],
            edgecolor="white",
            linewidth=0,
            hatch=_HATCHES[position % len(_HATCHES)],
            label=series.label,
        )
        axes.plot(centres[worst], accuracies[worst] + 0.025, marker="v", color=_INK, markersize=4, linestyle="")
    if len(names) > MANY:
        axes.set_xlabel(f"the {len(names)} classes, from the worst to the best of each method")
    else:
        is_crowded = max(map(len, labels)) > 6
        axes.set_xticks(
            range(len(names)), labels, rotation=25 if is_crowded else 0, ha="right" if is_crowded else "center"
        )
        axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1.06)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_ylabel("test accuracy")
    _legend(axes, columns=4)
    yield Plot(
        "accuracy_by_class",
        "Test accuracy of each class at the last step, mean over seeds; a triangle is over each method's worst.",
        f"Test accuracy of each class. {'; '.join(told)}.",
        figure,
    )


def _weights(comparison: Comparison) -> Iterator[Plot]:
    _, names = comparison.names
    for prefix, what in (("group_weight/", "Weight"), ("cumulative_payoff/", "Cumulative payoff")):
        for series in comparison.series:
            found = [one.metrics.by_group(prefix) for one in series.trainings.values()]
            found = [(steps, values) for steps, values in found if len(steps) and values.shape[1] == len(names)]
            if not found or not any(np.ptp(values, axis=0).max() > 0 for _, values in found):
                continue
            num_steps = min(len(steps) for steps, _ in found)
            steps = found[0][0][:num_steps]
            mean = np.mean([values[:num_steps] for _, values in found], axis=0)
            figure, axes = _figure()
            _draw_groups(axes, steps, mean, [as_text(name) for name in names])
            axes.set_xlabel("step")
            axes.set_ylabel("weight" if prefix == "group_weight/" else "cumulative payoff, nats")
            if prefix == "group_weight/":
                axes.axhline(1 / len(names), color=_GRID, linewidth=0.8, linestyle=":")
                axes.set_ylim(bottom=0)
            largest = np.argsort(-mean[-1], kind="stable")[:_NUM_NAMED].tolist()
            yield Plot(
                f"{prefix.rstrip('/')}_{_file_name(series.label)}",
                f"{series.label}: {what.lower()} of each class over time, mean over seeds. Where names share a label "
                "they are in order from the lowest line."
                + (" The dotted line is that of equal weights." if prefix == "group_weight/" else ""),
                f"{what} of each class. Largest at the end: "
                + ", ".join(f"{names[group]} {mean[-1, group]:.3g}" for group in largest)
                + ".",
                figure,
            )


def _draw_groups(axes: Axes, steps: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    """A line for each group of ``values`` (T, G) with its name at its end; of many, the largest alone are named."""
    if len(names) > MANY:
        axes.plot(steps, values, color=_GRID, linewidth=0.5, alpha=0.6)
        named = np.argsort(-values[-1], kind="stable")[:_NUM_NAMED].tolist()
    else:
        named = list(range(len(names)))
    for place, group in enumerate(named):
        axes.plot(steps, values[:, group], color=COLOURS[place % len(COLOURS)], linewidth=1.6)
    colour_of = {group: COLOURS[place % len(COLOURS)] for place, group in enumerate(named)}
    for height, places in label_heights(values[-1, named]):
        groups = [named[place] for place in places]
        more = f" and {len(groups) - _NUM_NAMED} more" if len(groups) > _NUM_NAMED else ""
        axes.annotate(
            ", ".join(names[group] for group in groups[:_NUM_NAMED]) + more,
            (steps[-1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=colour_of[groups[0]] if len(groups) == 1 else _INK,
        )


def label_heights(values: np.ndarray) -> list[tuple[float, list[int]]]:
    """Where to write the name of each line that ends at ``values`` (G,); lines too close together share a label."""
    labels: list[tuple[float, list[int]]] = []
    gap = _LABEL_GAP * max(float(np.ptp(values)), float(np.abs(values).max()))
    for group in np.argsort(values).tolist():
        if labels and values[group] - values[labels[-1][1][-1]] < gap:
            groups = [*labels.pop()[1], group]
            labels.append((float(values[groups].mean()), groups))
        else:
            labels.append((float(values[group]), [group]))
    return labels


def _corrupted(comparison: Comparison) -> Iterator[Plot]:
    figure, axes = _figure()
    told, among_all = [], None
    for place, series in enumerate(comparison.series):
        shares = [share for one in series.trainings.values() if (share := _corrupted_share(one)) is not None]
        if not shares:
            continue
        num_windows = min(len(share) for _, share in shares)
        mean = np.mean([share[:num_windows] for _, share in shares], axis=0)
        axes.plot(shares[0][0][:num_windows], mean, label=series.label, markersize=4, **_line_style(place, series))
        told.append(f"{series.label} {mean[-1]:.2f}")
        if (
            among_all is None
            and (flags := next(iter(series.trainings.values())).point_arrays("is_corrupted")) is not None
        ):
            among_all = float(flags.mean())
    if not told:
        return
    if among_all is not None:
        axes.axhline(among_all, color=_GRID, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("corrupted among the selected")
    _legend(axes)
    yield Plot(
        "corrupted",
        "Share of corrupted points among the selected, mean over a twelfth of the steps; dotted: among all points.",
        f"Share of corrupted points among the selected. At the end: {', '.join(told)}.",
        figure,
    )


def _corrupted_share(training: Training) -> tuple[np.ndarray, np.ndarray] | None:
    """Middle steps (W,) of windows, and the share of corrupted points selected in each."""
    index, flags = training.index, training.point_arrays("is_corrupted")
    if index is None or flags is None or not len(index):
        return None
    windows = np.array_split(np.arange(len(index)), min(12, len(index)))
    shares = [flags[index[window][index[window] >= 0]].mean() for window in windows]
    return np.array([window.mean() + 1 for window in windows]), np.array(shares)


def _repeats(comparison: Comparison) -> Iterator[Plot]:
    figure, axes = _figure()
    told = []
    for place, series in enumerate(comparison.series):
        found = [times for one in series.trainings.values() if (times := one.times_selected) is not None]
        if not found:
            continue
        most = max(int(times.max()) for times in found)
        at_least = np.mean(
            [np.bincount(times, minlength=most + 1)[::-1].cumsum()[::-1] / len(times) for times in found], axis=0
        )
        axes.plot(
            np.arange(1, most + 1),
            at_least[1:],
            label=series.label,
            markevery=max(1, most // 6),
            markersize=4,
            **_line_style(place, series),
        )
        told.append(f"{series.label} selected {at_least[1]:.0%} of the points at least once" if most else series.label)
    if not told:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1)
    axes.set_xlim(left=1)
    axes.set_xlabel("times selected, at least")
    axes.set_ylabel("share of the training points")
    _legend(axes)
    yield Plot(
        "repeats", "Share of the training points that were selected at least so often.", f"{'; '.join(told)}.", figure
    )


def _losses(comparison: Comparison) -> Iterator[Plot]:
    for series in _shown_closely(comparison):
        found = [
            (one.point_loss, one.times_selected)
            for one in series.trainings.values()
            if one.point_loss is not None
            and one.times_selected is not None
            and len(one.point_loss) == len(one.times_selected)
        ]
        if not found:
            continue
        losses, times = (np.concatenate(parts) for parts in zip(*found, strict=True))
        is_finite = np.isfinite(losses)
        losses, times = losses[is_finite], times[is_finite]
        lowest, highest = (float(end) for end in (losses.min(), losses.max())) if len(losses) else (1.0, 1.0)
        edges = np.geomspace(max(_LEAST_LOSS, lowest), max(highest, 2 * max(_LEAST_LOSS, lowest)), 41)
        losses = np.clip(losses, edges[0], edges[-1])
        figure, axes = _figure()
        kinds = (
            ("selected, as often as it was", times, REDUCR_COLOUR, "-"),
            ("never selected", (times == 0).astype(np.int64), COLOURS[0], "--"),
        )
        told = []
        for label, weights, colour, dashes in kinds:
            if not weights.sum():
                continue
            counts, _ = np.histogram(losses, edges, weights=weights.astype(np.float64))
            axes.stairs(counts / weights.sum(), edges, label=label, color=colour, linestyle=dashes, linewidth=1.8)
            told.append(f"{label}: median {_weighted_median(losses, weights):.2g} nats")
        axes.set_xscale("log")
        axes.set_xlabel("loss of the last model, nats")
        axes.set_ylabel("share of the points")
        _legend(axes, columns=2)
        yield Plot(
            f"losses_{_file_name(series.label)}",
            f"{series.label}: loss of the last model on selected points and on those never selected.",
            f"Losses under {series.label}. {'; '.join(told)}.",
            figure,
        )


def _confusions(comparison: Comparison) -> Iterator[Plot]:
    names, _ = comparison.names
    for series in _shown_closely(comparison, with_selection=False):
        counts = confusion(series)
        if counts is None or len(names) > MANY:
            continue
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        worst = worst_class(counts)
        figure, axes = _figure(height=4.6)
        for row, column in np.ndindex(shares.shape):
            share = float(shares[row, column])
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor="#1b5aa6", alpha=share, linewidth=0
                )
            )
            if share >= 0.005:
                axes.text(
                    column, row, f"{share * 100:.0f}", ha="center", va="center", fontsize=7,
                    color="white" if share > 0.78 else _INK,
                )  # fmt: skip
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (-0.5, worst - 0.5), len(names), 1, fill=False, edgecolor=REDUCR_COLOUR, linewidth=1.8
            )
        )
        labels = [as_text(name) for name in names]
        axes.set_xticks(
            range(len(names)),
            labels,
            rotation=40 if max(map(len, labels)) > 3 else 0,
            ha="right" if max(map(len, labels)) > 3 else "center",
        )
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlim(-0.55, len(names) - 0.45)
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlabel("predicted")
        axes.set_ylabel("class")
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        mistaken = int(np.where(np.arange(len(names)) == worst, -1, shares[worst]).argmax())
        yield Plot(
            f"confusion_{_file_name(series.label)}",
            f"{series.label}: what test points of each class are taken for at the last step, in percent, all seeds "
            "together; the worst class is framed.",
            f"Confusion matrix of {series.label}. The worst class, {names[worst]}, is right in "
            f"{shares[worst, worst]:.0%} and most often taken for {names[mistaken]}, in {shares[worst, mistaken]:.0%}.",
            figure,
        )


def _seconds(comparison: Comparison) -> Iterator[Plot]:
    shown = [series for series in comparison.series if series.values("total_seconds")]
    if not shown:
        return
    parts = {"irreducible": "irreducible stage", "selection": "scoring", "training": "training"}
    figure, axes = _figure(height=0.9 + 0.32 * len(shown) + 0.7)
    left = np.zeros(len(shown))
    totals = np.array([np.mean(list(series.values("total_seconds").values())) for series in shown])
    for place, (name, label) in enumerate([*parts.items(), ("rest", "evaluation and rest")]):
        widths = (
            np.maximum(totals - left, 0)
            if name == "rest"
            else np.array([np.mean(list(series.values(f"{name}_seconds").values())) for series in shown])
        )
        axes.barh(
            range(len(shown)), widths, left=left, label=label, color=[REDUCR_COLOUR, *COLOURS][(0, 1, 2, 7)[place]],
            hatch=_HATCHES[place], edgecolor="white", linewidth=0, height=0.7,
        )  # fmt: skip
        left += widths
    axes.set_yticks(range(len(shown)), [series.label for series in shown])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, mean over seeds")
    _legend(axes, columns=2)
    told = ", ".join(f"{series.label} {total:.3g} s" for series, total in zip(shown, totals, strict=True))
    yield Plot("seconds", "Where the seconds went.", f"Seconds in all: {told}.", figure)


def _shown_closely(comparison: Comparison, *, with_selection: bool = True) -> list[Series]:
    """REDUCR, and the best of the others in the worst class."""
    others = [
        (float(np.mean(list(values.values()))), series)
        for series in comparison.series
        if not series.is_reducr
        and (values := series.values("worst_class_accuracy"))
        and not (with_selection and next(iter(series.trainings.values())).times_selected is None)
    ]
    best = [max(others, key=lambda pair: pair[0])[1]] if others else []
    return ([comparison.reducr] if comparison.reducr is not None else []) + best


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _figure(*, width: float = _SIZE[0], height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(axis="y", color=_GRID, alpha=0.35, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _line_style(place: int, series: Series) -> dict[str, Any]:
    if series.is_reducr:
        return {"color": REDUCR_COLOUR, "linewidth": 2.4, "linestyle": "-", "marker": _MARKERS[0]}
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linewidth": 1.5,
        "linestyle": _DASHES[place % len(_DASHES)],
        "marker": _MARKERS[1 + place % (len(_MARKERS) - 1)],
    }


def _legend(axes: Axes, *, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    fitting = max(1, min(columns, int(64 * columns / 3 / (longest + 6))))
    figure = axes.get_figure()
    if handles and isinstance(figure, Figure):
        figure.legend(handles, labels, loc="outside lower center", ncols=fitting, handlelength=3.2)


def _file_name(label: str) -> str:
    return re.sub(r"[^\w=.-]+", "_", label).strip("_")


def as_text(name: str) -> str:
    """``name`` as matplotlib writes it: no formula between dollars, and no longer than fits."""
    half = _LONGEST_NAME // 2
    short = name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


@contextmanager
def _drawing() -> Iterator[None]:
    """Drawing in the report's style; a character that the font lacks is drawn as a box."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
