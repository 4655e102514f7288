"""What the export is worth: a tiny trial leaves what it says, and the document says what the runs say."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest

import local_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.export_trial")


def data_dir(folder):
    if "REDUCR_DATA_DIR" in os.environ:
        return os.environ["REDUCR_DATA_DIR"]
    local_data.fashion_mnist(folder)
    return folder


@pytest.mark.long
def test_tiny_trial(tmp_path, trial, capsys):
    out = tmp_path / "trial.json"
    arms = ["random", "all", trial.DEFAULT]
    options = ["--data-dir", data_dir(tmp_path), "--out", out, "--tiny"]
    options += ["--options", "datamodule.holdout_size=100", "record.page=false"]
    options = [str(option) for option in options]
    trial.main([*options, "--seeds", "0", "--arms", *arms[:2]])
    first = json.loads(out.read_text())["runs"]
    assert [(one["arm"], one["seed"]) for one in first] == [("all", 0), ("random", 0)]
    trial.main([*options, "--seeds", "0", "--arms", *arms])  # what is missing alone
    runs = {one["arm"]: one for one in json.loads(out.read_text())["runs"]}
    assert sorted(runs) == sorted(arms)
    assert [runs[one["arm"]] for one in first] == first
    for one in runs.values():
        assert 0 <= one["worst_class"] <= one["mean"] <= 1
    assert runs["random"]["num_points"] == runs[trial.DEFAULT]["num_points"] == runs["all"]["num_points"] // 10
    printed = capsys.readouterr().out
    assert re.search(r"^\| .* \| \d\.\d{3}", printed, flags=re.MULTILINE)


def test_documented_table_is_that_of_the_runs(trial, capsys):
    before = (ROOT / "docs/export.md").read_text()
    trial.main(["--out", str(ROOT / "benchmarks/export_trial.json")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) > 4
    assert all(row in before for row in rows)
