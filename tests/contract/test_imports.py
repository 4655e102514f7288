"""Who may import whom, as pyproject.toml says; and each of these rules reports a breach."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
ALLOWED = {  # the packages in which each library may be imported
    "Lightning": {"lightning", "pipeline"},
    "Hydra": {"cli", "pipeline"},
    "Matplotlib": {"reports"},
    "Transformers": {"models", "data", "hugging_face"},
}
BREACHES = {
    "Imports point downwards only": ("functional/scores.py", "import reducr.selectors"),
    "Lightning only in reducr.lightning and the pipeline": ("reports/tables.py", "import lightning"),
    "Hydra only in the command line and the pipeline": ("lightning/fit.py", "import omegaconf"),
    "Matplotlib only in reports": ("cli.py", "import matplotlib.pyplot"),
    "The library core needs torch and numpy only": ("downsampler.py", "import pandas"),
    "Transformers and datasets only in models, data and reducr.hugging_face": ("reports/page.py", "import datasets"),
    "No experiment tracker in code: loggers are named in a configuration": ("pipeline/run.py", "import wandb"),
}


def top_level():
    source = ROOT / "src/reducr"
    return {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {
        "__init__"
    }


def test_import_rules(capsys):
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
    assert "0 broken" in capsys.readouterr().out


@pytest.mark.parametrize("library", ALLOWED)
def test_every_package_is_behind_the_fences(library):
    contract = next(contract for contract in CONTRACTS if contract["name"].startswith(f"{library} "))
    fenced = {module.removeprefix("reducr.") for module in contract["source_modules"]}
    assert fenced == top_level() - ALLOWED[library]


def test_every_rule_is_broken_on_purpose():
    assert set(BREACHES) == {contract["name"] for contract in CONTRACTS}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_reported(name, tmp_path):
    path, line = BREACHES[name]
    shutil.copytree(ROOT / "src/reducr", tmp_path / "reducr", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "reducr" / path).open("a") as file:
        file.write(f"\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert f"{name} BROKEN" in run.stdout
    assert "1 broken" in run.stdout
