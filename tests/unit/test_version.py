"""The version is written in ``reducr.__version__``; packaging reads it there, and the citation agrees."""

import ast
import re
import tomllib
from pathlib import Path

import reducr

ROOT = Path(__file__).parents[2]


def test_the_version_is_a_literal_that_setuptools_reads_without_an_import():
    statements = ast.parse(Path(reducr.__file__).read_text()).body
    assigned = {
        statement.targets[0].id: statement.value for statement in statements if isinstance(statement, ast.Assign)
    }
    assert ast.literal_eval(assigned["__version__"]) == reducr.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", reducr.__version__)


def test_packaging_reads_the_version_from_the_package():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in options["project"]
    assert options["project"]["dynamic"] == ["version"]
    assert options["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "reducr.__version__"}


def test_the_citation_has_the_same_version():
    versions = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert versions == [reducr.__version__]
