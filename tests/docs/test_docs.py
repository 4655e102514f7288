"""What README and docs say is so: doctests, code blocks, commands, headings and keys."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reducr

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(reducr.__path__, "reducr.")
    if not module.name.startswith(("reducr.pipeline", "reducr.cli"))
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    names = {"torch": torch, "Candidates": reducr.Candidates}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs=names, optionflags=options)
    assert result.failed == 0


def test_there_are_doctests():
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples > 40


def test_readmes_library_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "290 of 2900 candidates selected (0.100)"
    assert re.fullmatch(r"group 2: \d+ selected, weight 0\.\d{4}", last)


def test_every_make_target_that_readme_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert {"run", "test"} <= named <= targets


def test_every_method_has_its_heading():
    methods = {*reducr.SELECTORS, *(path.stem for path in (ROOT / "src/reducr/configs/method").glob("*.yaml"))}
    headings = set(re.findall(r"^### `?(\w+)`?$", (ROOT / "docs/method.md").read_text(), flags=re.MULTILINE))
    assert methods <= headings


def test_every_logged_key_and_result_column_is_explained():
    from reducr._internal.run_folder import RESULT_COLUMNS

    text = (ROOT / "docs/metrics.md").read_text()
    for path in (ROOT / "src/reducr/lightning").glob("*.py"):
        keys = re.findall(r'"((?:train|select|time|holdout|irreducible)/[\w/]+)"', path.read_text())
        for key in keys:
            assert f"`{key}" in text, key
    for column in (*RESULT_COLUMNS, "group_weight/", "cumulative_payoff/"):
        assert f"`{column}" in text, column


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


HEAVY = ["lightning", "hydra", "omegaconf", "torchmetrics", "matplotlib", "rich", "sklearn", "pandas", "scipy", "wandb"]


def test_import_of_the_core_brings_nothing_heavy():
    code = (
        "import sys, reducr, reducr.scoring.scorer, reducr.irreducible, reducr.training.loop\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
