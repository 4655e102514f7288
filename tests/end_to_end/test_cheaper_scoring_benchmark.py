"""Cheaper scoring passes: a tiny comparison leaves what it says, and the document says what the runs say."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest

import local_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.cheaper_scoring")


def printed(benchmark, capsys, *arguments):
    benchmark.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def data_dir(folder):
    if "REDUCR_DATA_DIR" in os.environ:
        return os.environ["REDUCR_DATA_DIR"]
    local_data.fashion_mnist(folder)
    return folder


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of the compiler itself
def test_tiny_comparison(tmp_path, benchmark, capsys):
    out = tmp_path / "runs.json"
    options = ["--data-dir", data_dir(tmp_path), "--out", out, "--tiny", "--settings", "fashion_mnist"]
    options += ["--options", "datamodule.holdout_size=100"]
    printed(benchmark, capsys, *options, "--seeds", 0)
    first = json.loads(out.read_text())["runs"]
    text = printed(benchmark, capsys, *options, "--seeds", 0, 1)  # what is missing alone
    assert re.findall(r"^fashion_mnist, seed (\d)", text, flags=re.MULTILINE) == ["1"]
    runs = json.loads(out.read_text())["runs"]
    assert [(one["setting"], one["seed"]) for one in runs] == [("fashion_mnist", 0), ("fashion_mnist", 1)]
    assert runs[0] == first[0]
    for one in runs:
        assert list(one["variants"]) == list(benchmark.VARIANTS)
        for outcome in one["variants"].values():
            assert 0 < outcome["scoring_seconds"] < outcome["step_seconds"]
            assert 0 <= outcome["worst_class"] <= outcome["mean"] <= 1
        assert one["variants"]["compiled"]["mean"] == one["variants"]["full"]["mean"]

    header, *rows = rows_of(text)
    assert [row[0] for row in rows] == [variant.label for variant in benchmark.VARIANTS.values()]
    for row in rows:
        assert len(row) == len(header)
        assert all(re.fullmatch(r"\d\.\d{3} ± \d\.\d{3}", row[place]) for place in (3, 6))
    baselines = [row for row in rows if row[4] == "–"]
    assert [row[1][-3:] for row in baselines] == [" ms", " ms"]

    again = printed(benchmark, capsys, "--out", out)
    assert rows_of(again) == [header, *rows]
    with pytest.raises(SystemExit):
        benchmark.main([*map(str, options), "num_candidates=50"])
    assert "were made with another options." in capsys.readouterr().err
