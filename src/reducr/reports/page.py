"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from reducr.reports.gallery import Gallery, Shown
from reducr.reports.plots import Plot
from reducr.reports.run_reader import Comparison, Run
from reducr.reports.statistics import Estimate
from reducr.reports.tables import NOTHING, Cell, Table, is_signed

_WORDS = ' class="words"'
_WIDE_FIGURES = ("accuracy_by_class",)


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Args:
        title: the heading.
        tables: come first.
        plots: come next.
        note: comes before both.
        galleries: come last.
    """

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    note: str = ""
    galleries: Sequence[Gallery] = ()


def page(chapters: Sequence[tuple[Comparison, Sequence[Section]]], *, written_at: str) -> str:
    """The whole page.

    Args:
        chapters: the sections of every comparison.
        written_at: date and time.
    """
    runs = [run for comparison, _ in chapters for run in comparison.runs]
    contents, body = [], []
    for number, (comparison, sections) in enumerate(chapters):
        prefix = f"{comparison.title}: " if len(chapters) > 1 else ""
        shown = [section for section in sections if section.tables or section.plots or section.note]
        for place, section in enumerate(shown):
            anchor = f"s{number}-{place}"
            contents.append(f'<li><a href="#{anchor}">{escape(prefix + section.title)}</a></li>')
            body.append(
                f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(prefix + section.title)}</h2>'
            )
            body.extend(_section(section, anchor))
            body.append("</section>")
    contents.append('<li><a href="#repeat">Configuration</a></li>')
    body.extend(_repeat(runs))
    names = dict.fromkeys(comparison.title for comparison, _ in chapters)
    folder = files("reducr.reports")
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Report of {', '.join(names)}"),
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        status="\n".join(_status(run, written_at) for run in runs),
        contents="\n".join(contents),
        body="\n".join(body),
    )


def _status(run: Run, written_at: str) -> str:
    num_finished = len({(row.method, row.seed) for row in run.rows})
    told = f"{num_finished} of {run.num_expected} trainings finished when this page was written, {escape(written_at)}."
    if run.state == "running":
        told += f" <code>reducr report {escape(str(run.folder))}</code> writes it anew."
    elif run.state == "interrupted":
        told += f" <code>reducr resume {escape(str(run.folder))}</code> goes on with it."
    return f'<p class="status"><span class="state {run.state}">{run.state}</span> {escape(run.name)}: {told}</p>'


def _section(section: Section, anchor: str) -> Iterator[str]:
    if section.note:
        yield f"<p>{escape(section.note)}</p>"
    for table in section.tables:
        yield table_html(table)
    if section.plots:
        yield '<div class="figures">'
        for plot in section.plots:
            kind = ' class="wide"' if plot.name in _WIDE_FIGURES else ""
            svg = plot.inline_svg(f"{anchor}-{plot.name}")
            if plot.name in _WIDE_FIGURES:
                svg = f'<div class="picture" tabindex="0">{svg}</div>'
            yield f"<figure{kind}>\n{svg}\n<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
        yield "</div>"
    for gallery in section.galleries:
        yield f'<h3>{escape(gallery.title)}</h3>\n<p class="note">{escape(gallery.note)}</p>'
        kind = " texts" if any(point.text is not None for point in gallery.points) else ""
        yield f'<ul class="points{kind}">'
        yield from map(_point, gallery.points)
        yield "</ul>"


def table_html(table: Table) -> str:
    """A table in a box that it scrolls in."""
    words = {
        column
        for place, column in enumerate(table.columns)
        if any(isinstance(line[place], str) and ", " in str(line[place]) for line in table.lines)
    }
    head = "".join(
        f'<th scope="col"{_WORDS if column in words else ""}>{escape(column)}</th>' for column in table.columns
    )
    lines = []
    for first, *others in table.lines:
        cells = "".join(
            _cell(cell, signed=is_signed(column), has_bar=table.has_bars, has_words=column in words)
            for column, cell in zip(table.columns[1:], others, strict=True)
        )
        kind = ' class="reducr"' if first == "reducr" else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3>{note}\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _cell(cell: Cell, *, signed: bool, has_bar: bool, has_words: bool) -> str:
    if isinstance(cell, str):
        return f"<td{_WORDS if has_words else ''}>{escape(cell)}</td>"
    return f"<td{_bar(cell) if has_bar else ''}>{_estimate(cell, signed=signed, has_interval=not has_bar)}</td>"


def _bar(cell: Estimate) -> str:
    return f' class="bar" style="--share:{min(max(cell.mean, 0.0), 1.0):.4f}"'


def _estimate(cell: Estimate, *, signed: bool, has_interval: bool) -> str:
    sign = "+" if signed else ""
    mean = f"{cell.mean:{sign}.3f}"
    if cell.deviation is None or cell.low is None or cell.high is None:
        return mean
    if signed and cell.low * cell.high > 0:
        mean = f"<strong>{mean}{' ▲' if cell.low > 0 else ' ▼'}</strong>"
    text = f'{mean} <span class="deviation">± {cell.deviation:.3f}</span>'
    if has_interval:
        text += f'<span class="interval">[{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]</span>'
    return text


def _point(point: Shown) -> str:
    facts = [f"label {point.label}"]
    if point.predicted is not None:
        facts.append(f"irreducible model: {point.predicted}")
    facts.append("selected once" if point.times == 1 else f"selected {point.times} times")
    if point.model_loss is not None:
        facts.append(f"loss {point.model_loss:.2f}")
    if point.irreducible_loss is not None:
        facts.append(f"irreducible {point.irreducible_loss:.2f}")
    told = f"<strong>{point.index}</strong><br>" + "<br>".join(map(escape, facts))
    if point.is_corrupted:
        told += '<br><span class="corrupted">✗ corrupted</span>'
    if point.image is not None:
        look = f'<img src="{point.image}" alt="training point {point.index}, labelled {escape(point.label)}">'
    else:
        look = f"<blockquote>{escape(point.text or NOTHING)}</blockquote>"
    return f"<li>{look}{told}</li>"


def _repeat(runs: Sequence[Run]) -> Iterator[str]:
    yield '<section aria-labelledby="repeat">\n<h2 id="repeat">Configuration, and how to repeat it</h2>'
    for run in runs:
        yield f"<h3>{escape(run.name)}</h3>"
        yield f'<pre tabindex="0"><code>{escape(run.command or "(the command was not recorded)")}</code></pre>'
        yield (
            "<details><summary>Every option</summary>\n"
            f'<pre tabindex="0"><code>{escape(run.config_text)}</code></pre>\n</details>'
        )
    yield "</section>"
