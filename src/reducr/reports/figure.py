"""Figures in the style of the report.

Legible on a light and a dark page, in black and white, and on a phone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reducr._internal.files import replaced_atomically, write_text_atomically
from reducr._internal.text import html_text
from reducr.reports.comparison import Series

# each has a contrast of at least 3 with a white and a dark page; methods also differ in dashes, markers and hatching
REDUCR_COLOUR = "#d9480f"
COLOURS = (
    "#2b7bd3", "#2a9152", "#9a5bd0", "#8c7a14", "#148c9c", "#c4497f", "#7b8087", "#5b6fe0", "#b0602f", "#4b8a10",
)  # fmt: skip
INK = "#111213"  # replaced by the text colour of the page
GRID_COLOUR = "#8a8f98"
HATCHES = ("", "///", "---", "\\\\\\", "|||", "xxx", "+++")
MAX_NAMED = 20  # with more classes than this, a plot does not name each
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX<>*"
_SIZE = (5.0, 3.5)  # inches; small, so that text stays legible on a phone
_MAX_NAME_LENGTH = 24
_MAX_FILE_NAME_LENGTH = 50  # of at most four bytes each
_TAG = re.compile(r"<[^<>]*>")
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
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
    """A figure with its texts.

    Args:
        name: file name without suffix.
        caption: what it shows.
        alternative: what can be seen in it, for readers who cannot see it.
        figure: the picture.
    """

    name: str
    caption: str
    alternative: str
    figure: Figure

    def svg(self) -> str:
        """A self-contained SVG file."""
        content = BytesIO()
        with report_style():
            self.figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = content.getvalue().decode()
        return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)

    def inline_svg(self, prefix: str) -> str:
        """An SVG element in the page's text colour, as wide as its box; ``prefix`` makes its ids unique."""
        text = self.svg()
        text = _TAG.sub(lambda tag: _ID.sub(rf"\g<1>{prefix}-", tag[0].replace(INK, "currentColor")), text)
        text = text[text.index("<svg") :]
        head, rest = text.split(">", 1)
        head = re.sub(r' (?:width|height)="[^"]*"', "", head)
        return f'{head} role="img" aria-label="{html_text(self.alternative)}">{rest}'

    def save(self, folder: Path) -> None:
        """Write ``NAME.svg`` and ``NAME.png``."""
        write_text_atomically(folder / f"{self.name}.svg", self.svg())
        with report_style(), replaced_atomically(folder / f"{self.name}.png") as temporary:
            self.figure.savefig(temporary, format="png", dpi=160, facecolor="white")


@contextmanager
def report_style() -> Iterator[None]:
    """Draw in the style of the report; a character that the font lacks is drawn as a box, without a warning."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(*, width: float = _SIZE[0], height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(axis="y", color=GRID_COLOUR, alpha=0.35, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def line_style(position: int, series: Series) -> dict[str, Any]:
    """Colour, dashes and marker of the method at this position in a comparison; REDUCR always has its own."""
    if series.is_reducr:
        return {"color": REDUCR_COLOUR, "linewidth": 2.4, "linestyle": "-", "marker": _MARKERS[0]}
    return {
        "color": COLOURS[position % len(COLOURS)],
        "linewidth": 1.5,
        "linestyle": _DASHES[position % len(_DASHES)],
        "marker": _MARKERS[1 + position % (len(_MARKERS) - 1)],
    }


def add_legend(axes: Axes, *, num_columns: int = 3) -> None:
    """Put a legend below the axes, with fewer columns if the labels are long."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    num_fitting = max(1, min(num_columns, int(64 * num_columns / 3 / (longest + 6))))
    figure = axes.get_figure()
    if handles and isinstance(figure, Figure):
        figure.legend(handles, labels, loc="outside lower center", ncols=num_fitting, handlelength=3.2)


def legend_label(name: str) -> str:
    """``name`` as the label of a line: no formula, and not left out for an underscore at its beginning."""
    return _literal(f"\u200b{name}" if name.startswith("_") else name)


def file_name(label: str) -> str:
    """``label`` with every run of characters that do not belong in a file name replaced by an underscore."""
    return re.sub(r"[^\w=.-]+", "_", label).strip("_")[:_MAX_FILE_NAME_LENGTH]


def label_text(name: str) -> str:
    """``name`` shortened to fit, with dollar signs escaped so that matplotlib does not typeset a formula."""
    half = _MAX_NAME_LENGTH // 2
    return _literal(name if len(name) <= _MAX_NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}")


def _literal(text: str) -> str:
    return text.replace("$", r"\$")
