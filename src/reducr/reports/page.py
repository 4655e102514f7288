"""Write the report as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from reducr._internal.text import html_text
from reducr.reports.comparison import Comparison
from reducr.reports.figure import Plot
from reducr.reports.gallery import Exhibit, Gallery, selected_text
from reducr.reports.run_reader import Run
from reducr.reports.statistics import Estimate
from reducr.reports.tables import EMPTY_CELL, Cell, Table, is_signed

_WORDS = ' class="words"'
_WIDE_PLOTS = ("accuracy_by_class",)


@dataclass(frozen=True)
class Section:
    """A section of the page; its parts are shown in the order note, tables, plots, galleries.

    Args:
        title: the heading.
        tables: tables.
        plots: plots.
        note: introductory text.
        galleries: galleries of examples.
    """

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    note: str = ""
    galleries: Sequence[Gallery] = ()


def page(chapters: Sequence[tuple[Comparison, Sequence[Section]]], *, written_at: str) -> str:
    """The HTML text of the page.

    Args:
        chapters: each comparison with its sections.
        written_at: date and time to show.
    """
    runs = [run for comparison, _ in chapters for run in comparison.runs]
    contents, body = [], []
    for number, (comparison, sections) in enumerate(chapters):
        prefix = f"{comparison.title}: " if len(chapters) > 1 else ""
        filled = [section for section in sections if section.tables or section.plots or section.note]
        for i, section in enumerate(filled):
            anchor = f"s{number}-{i}"
            contents.append(f'<li><a href="#{anchor}">{html_text(prefix + section.title)}</a></li>')
            body.append(
                f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{html_text(prefix + section.title)}</h2>'
            )
            body.extend(_section(section, anchor))
            body.append("</section>")
    contents.append('<li><a href="#configuration">Configuration</a></li>')
    body.extend(_configuration(runs))
    names = dict.fromkeys(comparison.title for comparison, _ in chapters)
    folder = files("reducr.reports")
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html_text(f"Report: {', '.join(names)}"),
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        status="\n".join(_status(run, written_at) for run in runs),
        contents="\n".join(contents),
        body="\n".join(body),
    )


def _status(run: Run, written_at: str) -> str:
    text = f"{run.num_finished} of {run.num_expected} trainings finished by {html_text(written_at)}."
    if run.state == "running":
        text += f" Update this page with <code>reducr report {html_text(str(run.folder))}</code>."
    elif run.state == "interrupted":
        text += f" Continue the run with <code>reducr resume {html_text(str(run.folder))}</code>."
    return f'<p class="status"><span class="state {run.state}">{run.state}</span> {html_text(run.name)}: {text}</p>'


def _section(section: Section, anchor: str) -> Iterator[str]:
    if section.note:
        yield f"<p>{_note(section.note)}</p>"
    for table in section.tables:
        yield table_html(table)
    if section.plots:
        yield '<div class="figures">'
        yield from (_figure(plot, anchor) for plot in section.plots)
        yield "</div>"
    for gallery in section.galleries:
        yield f'<h3>{html_text(gallery.title)}</h3>\n<p class="note">{_note(gallery.note)}</p>'
        kind = " texts" if any(example.text is not None for example in gallery.examples) else ""
        yield f'<ul class="examples{kind}">'
        yield from map(_exhibit, gallery.examples)
        yield "</ul>"


def _figure(plot: Plot, anchor: str) -> str:
    svg = plot.inline_svg(f"{anchor}-{plot.name}")
    caption = f"<figcaption>{html_text(plot.caption)}</figcaption>"
    if plot.name in _WIDE_PLOTS:
        return f'<figure class="wide">\n<div class="picture" tabindex="0">{svg}</div>\n{caption}\n</figure>'
    return f"<figure>\n{svg}\n{caption}\n</figure>"


def table_html(table: Table) -> str:
    """The table in a box that scrolls if the table is wider than the page."""
    wordy_columns = {
        column
        for i, column in enumerate(table.columns)
        if any(isinstance(line[i], str) and ", " in str(line[i]) for line in table.lines)
    }
    head = "".join(
        f'<th scope="col"{_WORDS if column in wordy_columns else ""}>{html_text(column)}</th>'
        for column in table.columns
    )
    lines = []
    for first, *others in table.lines:
        cells = "".join(
            _cell(cell, has_sign=is_signed(column), has_bar=table.has_bars, has_words=column in wordy_columns)
            for column, cell in zip(table.columns[1:], others, strict=True)
        )
        kind = ' class="reducr"' if first == "reducr" else ""
        lines.append(f'<tr{kind}><th scope="row">{html_text(str(first))}</th>{cells}</tr>')
    note = f'\n<p class="note">{_note(table.note)}</p>' if table.note else ""
    return (
        f"<h3>{html_text(table.title)}</h3>{note}\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html_text(table.title)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _note(text: str) -> str:
    """``text`` in HTML, with words between backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html_text(text))


def _cell(cell: Cell, *, has_sign: bool, has_bar: bool, has_words: bool) -> str:
    if isinstance(cell, str):
        return f"<td{_WORDS if has_words else ''}>{html_text(cell)}</td>"
    return f"<td{_bar(cell) if has_bar else ''}>{_estimate(cell, has_sign=has_sign, has_interval=not has_bar)}</td>"


def _bar(cell: Estimate) -> str:
    return f' class="bar" style="--share:{min(max(cell.mean, 0.0), 1.0):.4f}"'


def _estimate(cell: Estimate, *, has_sign: bool, has_interval: bool) -> str:
    sign = "+" if has_sign else ""
    mean = f"{cell.mean:{sign}.3f}"
    if cell.deviation is None or cell.low is None or cell.high is None:
        return mean
    if has_sign and cell.low * cell.high > 0:
        mean = f"<strong>{mean}{' ▲' if cell.low > 0 else ' ▼'}</strong>"
    text = f'{mean} <span class="deviation">± {cell.deviation:.3f}</span>'
    if has_interval:
        text += f'<span class="interval">[{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]</span>'
    return text


def _exhibit(example: Exhibit) -> str:
    facts = [f"label {example.label}"]
    if example.prediction is not None:
        facts.append(f"reference model: {example.prediction}")
    facts.append(selected_text(example.times_selected))
    if example.model_loss is not None:
        facts.append(f"loss {example.model_loss:.2f}")
    if example.irreducible_loss is not None:
        facts.append(f"irreducible loss {example.irreducible_loss:.2f}")
    text = f"<strong>{example.index}</strong><br>" + "<br>".join(map(html_text, facts))
    if example.is_corrupted:
        text += '<br><span class="corrupted">✗ corrupted</span>'
    if example.image is not None:
        alternative = f"training example {example.index}, labelled {html_text(example.label)}"
        picture = f'<img src="{example.image}" alt="{alternative}">'
    else:
        picture = f"<blockquote>{html_text(example.text or EMPTY_CELL)}</blockquote>"
    return f"<li>{picture}{text}</li>"


def _configuration(runs: Sequence[Run]) -> Iterator[str]:
    yield '<section aria-labelledby="configuration">\n<h2 id="configuration">Configuration and command</h2>'
    for run in runs:
        yield f"<h3>{html_text(run.name)}</h3>"
        yield f'<pre tabindex="0"><code>{html_text(run.command or "(the command was not recorded)")}</code></pre>'
        yield (
            "<details><summary>All options</summary>\n"
            f'<pre tabindex="0"><code>{html_text(run.config_text)}</code></pre>\n</details>'
        )
    yield "</section>"
