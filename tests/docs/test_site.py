"""The documentation site builds without a warning and without anything from outside; its figures are the tables'."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
MEASURED = "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "performance.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    needed = ("mkdocs", "material", "mkdocstrings_handlers.python")
    try:
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
    except ModuleNotFoundError as error:
        missing = [error.name]
    if missing:
        pytest.skip(f"{missing[0]} is not installed; the extra docs brings all that builds the site")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Resources(HTMLParser):
    """What a browser would fetch for a page, and where its navigation leads."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.linked = [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in {"script", "link", "img", "iframe", "source"}:
            self.fetched += [values[name] for name in ("src", "href", "srcset") if values.get(name)]
        elif tag == "a" and "md-nav__link" in (values.get("class") or ""):
            self.linked.add((values.get("href") or "").split("#")[0])


def test_no_page_fetches_anything_from_outside(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and 404.html
    for page in pages:
        fetched = Resources(page).fetched
        assert len(fetched) > 3, page
        assert not [where for where in fetched if re.match(r"(\w+:)?//", where)], page
    assert "@import" not in "".join(path.read_text() for path in site.rglob("*.css"))


def test_every_page_is_in_the_navigation(site):
    linked = Resources(site / "when_not_to_use_it.html").linked
    assert {page.removesuffix(".md") + ".html" for page in PAGES} - linked <= {"when_not_to_use_it.html"}


def test_the_reference_shows_arguments_errors_and_examples(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference/reducr.html").read_text())
    assert "fraction of every batch to yield, in (0, 1]" in text
    assert "for a model, loader, selector or irreducible of another kind." in text
    assert "[(2, 4), (2, 4)]" in text


@pytest.mark.parametrize("name", ["index.md", "choosing.md", "when_not_to_use_it.md", "card.md"])
def test_every_figure_stands_in_the_tables_it_is_from(name):
    text = (ROOT / "docs" / name).read_text()
    figures = set(re.findall(r"\b\d\.\d{3}\b", text)) | set(re.findall(r"\d\.\d{3} ± \d\.\d{3}", text))
    assert figures or name == "card.md"
    assert not {figure for figure in figures if figure not in MEASURED}


def test_the_rows_quoted_are_rows_of_results():
    rows = re.findall(
        r"^\| (?:\*.*\* \| |\| )?(\w+) \| (\d.*?) \| (\d.*?) \| ([\d.]+) \|$",
        (ROOT / "docs/when_not_to_use_it.md").read_text(),
        flags=re.MULTILINE,
    )
    assert len(rows) == 13
    for method, worst, mean, seconds in rows:
        assert re.search(
            rf"^\| {method} \| {re.escape(worst)} \| {re.escape(mean)} \| \d+ \| {seconds} \|", MEASURED, re.MULTILINE
        ), method


def test_the_three_lines_of_the_first_page_are_those_of_readme():
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), flags=re.DOTALL)
    assert lines in (ROOT / "README.md").read_text()
    assert len(lines.splitlines()) == 3
