"""Text of users is shown as it is, on one line, by everything that shows text."""

import csv
import io
from html import escape

import pytest
from rich.console import Console

from reducr._internal.text import one_line, plain_text, without_escapes
from reducr.pipeline.progress import RunDisplay
from reducr.reports.figure import legend_label, new_figure
from reducr.reports.page import table_html
from reducr.reports.tables import Table, comma_separated, make_console, markdown, print_line, print_table

NAMES = [
    "[red]", "[/x]", "[link=file:///x]y[/]", ":smile:", "a|b", "*c*", "`d`", "<b>", "$x_1$ $y$", "%s %", "{0}",
    "_under", "# e", "- f", "1. g", "back\\slash", "&amp;", "é 猫",
]  # fmt: skip


def table(*names):
    return Table("Names", ("name", *names), tuple((name, *["0.5"] * len(names)) for name in names), note="none")


def captured(show):
    file = io.StringIO()
    show(Console(file=file, width=400))
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markup(name):
    assert f"  {name}  " in captured(lambda console: print_table(table(name), console))
    assert captured(lambda console: print_line(f"report: {name}/x", console)) == f"report: {name}/x\n"
    display = RunDisplay(1, console=Console(file=io.StringIO(), width=400))
    with display:
        display.begin(name, 1, group_names=[name, "other"])
        display.show_weights([0.9, 0.1])
        display.advance(1, 0.5)
        display.finish(name)
    assert f"{name}\n" in display.console.file.getvalue()
    assert f">{escape(name)}<" in table_html(table(name))
    assert list(csv.reader(io.StringIO(comma_separated(table(name)))))[1][0] == name.replace("- f", "'- f")


def test_the_console_of_the_program_has_no_markup(capsys):
    make_console().print("[red]a[/red] :smile: [/]")
    assert capsys.readouterr().out == "[red]a[/red] :smile: [/]\n"


def test_long_paths_are_not_broken():
    path = "/folder" * 100
    assert captured(lambda console: print_line(path, console)) == f"{path}\n"


def test_control_characters_are_escaped():
    hostile = "a\nb\rc\x1b[2J\x07\u202ed\x00"
    assert one_line(hostile) == "a\\nb\\rc\\x1b[2J\\x07\\u202ed\\x00"
    assert without_escapes("a\n\t\x1b[31mb") == "a\n    \\x1b[31mb"
    assert plain_text("caf\udce9 \ud800") == "caf\\xe9 \\ud800"
    shown = captured(lambda console: print_table(table(hostile), console))
    assert "\x1b" not in shown
    assert one_line(hostile) in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", "a\\|b"),
        ("*c* _d_ e_f", "\\*c\\* \\_d\\_ e_f"),
        ("`g`", "\\`g\\`"),
        ("[h](x) <i>", "\\[h\\](x) \\<i>"),
        ("# j", "\\# j"),
        ("- k", "\\- k"),
        ("$x$ &amp; \\", "\\$x\\$ \\&amp; \\\\"),
        ("line\nbreak", "line\\\\nbreak"),
    ],
)
def test_names_in_markdown(name, shown):
    (line,) = [line for line in markdown(table(name)).splitlines() if line.startswith("| ") and "0.5" in line]
    assert line == f"| {shown} | 0.5 |"


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-cmd", "@sum", "\tx", '=HYPERLINK("http://x")'])
def test_a_spreadsheet_takes_no_name_for_a_formula(name):
    header, line = csv.reader(io.StringIO(comma_separated(table(name))))
    assert (header[1], line[0]) == (f"'{name}", f"'{name}")
    numbers = Table("Numbers", ("name", "x"), (("a", "-0.5"), ("b", "+1e-3")))
    assert "a,-0.5\nb,+1e-3\n" in comma_separated(numbers)


@pytest.mark.parametrize("name", ["$x_1$ $y$", "_under", "$", r"a\$b$"])
def test_plots_typeset_no_formula_and_leave_no_method_out(name):
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], label=legend_label(name))
    handles, labels = axes.get_legend_handles_labels()
    assert len(handles) == 1
    text = figure.text(0, 0, labels[0])
    assert text._preprocess_math(labels[0])[1] is False
