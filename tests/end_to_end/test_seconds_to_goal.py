"""Accuracy against seconds: a tiny comparison leaves what it says, and the document says what the runs say."""

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

import local_data

ROOT = Path(__file__).parents[2]
METHODS = [
    "reducr", "reducr_with_budget", "uniform", "class_balanced", "uniform_with_holdout", "all_candidates",
    "all_candidates_in_parts",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """What a command prints."""
    monkeypatch.syspath_prepend(ROOT)
    main = importlib.import_module("benchmarks.seconds_to_goal").main

    def printed(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return printed


def data_dir(folder):
    if "REDUCR_DATA_DIR" in os.environ:
        return os.environ["REDUCR_DATA_DIR"]
    local_data.fashion_mnist(folder)
    return folder


@pytest.mark.long
def test_tiny_comparison(tmp_path, run, capsys):
    out = tmp_path / "runs.json"
    options = ["--data-dir", data_dir(tmp_path), "--out", out, "--tiny", "--settings", "fashion_mnist", "--seeds", 0]
    options += ["--seconds", 0.2, "--tests", 2, "--options", "datamodule.holdout_size=100"]

    run(*options, "--methods", *METHODS[:2])
    first = json.loads(out.read_text())["runs"]
    assert [(one["setting"], one["method"], one["seed"]) for one in first] == [
        ("fashion_mnist", method, 0) for method in METHODS[:2]
    ]

    text = run(*options)  # what is missing alone
    assert [line.split(": ")[0] for line in text.splitlines() if " steps, " in line] == [
        f"fashion_mnist, seed 0, {method}" for method in METHODS[2:]
    ]
    content = json.loads(out.read_text())
    assert content["conditions"]["budget_seconds"] == 0.2
    runs = {one["method"]: one for one in content["runs"]}
    assert sorted(runs) == sorted(METHODS)
    assert [runs[one["method"]] for one in first] == first
    for one in runs.values():
        assert one["seconds"] == sorted(one["seconds"])
        assert one["seconds"][-1] >= 0.2 - 1e-4
        assert one["step"][0] == 1
        assert one["step"] == sorted(set(one["step"]))
        assert 1 <= len(one["step"]) <= 3
        assert all(0 <= worst <= mean <= 1 for worst, mean in zip(one["worst_class"], one["mean"], strict=True))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n")
    rows = re.findall(r"^\| (.+?) \| \d\.\d{3} ± 0\.000 \| \d+\.\d \|", text, flags=re.MULTILINE)
    assert rows[:2] == ["REDUCR", "REDUCR, a quarter scored"]
    assert len(rows) == len(METHODS)

    with pytest.raises(SystemExit, match="2"):
        run(*options, "--seconds", 0.3)
    assert "were made with another budget_seconds. Set `--out` to another file" in capsys.readouterr().err
    assert json.loads(out.read_text()) == content


def test_nothing_to_draw(tmp_path, run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--out", tmp_path / "runs.json")
    assert "Set --data-dir to the folder of the data" in capsys.readouterr().err


def test_arithmetic(tmp_path, run):
    """On made runs of two seeds: means between tests, the goal, and when it is reached."""
    flat = {"seconds": [0.0, 10.0], "step": [1, 2], "mean": [0.5, 0.5], "commit": "none"}
    worst = {
        ("reducr", 0): [0.0, 0.8], ("reducr", 1): [0.0, 0.4], ("uniform", 0): [0.1, 0.4], ("uniform", 1): [0.3, 0.2],
    }  # fmt: skip
    runs = [
        {"setting": "fashion_mnist", "method": method, "seed": seed, **flat, "worst_class": values}
        for (method, seed), values in worst.items()
    ]
    out = tmp_path / "runs.json"
    out.write_text(json.dumps({"conditions": {"budget_seconds": 10.0}, "runs": runs}))
    text = run("--out", out)
    assert "| REDUCR | 0.600 ± 0.283 | 10.0 | 0.600 ± 0.283 | 0.500 ± 0.000 | 0.500 ± 0.000 | – |" in text
    assert "| uniform | 0.300 ± 0.141 | 10.0 | 0.300 ± 0.141 | 0.500 ± 0.000 | 0.500 ± 0.000 | 5.0 s |" in text
    assert (
        "Goal: 0.300, the best worst-class accuracy of uniform. REDUCR reaches it after 5.0 s, 0.50 of the budget."
        in text
    )


def test_document_says_what_the_runs_say(tmp_path, run):
    program = importlib.import_module("benchmarks.seconds_to_goal")
    document = (ROOT / "docs" / "performance.md").read_text()
    between = document.split(program.BEGIN)[1].split(program.END)[0].strip()
    runs = ROOT / "benchmarks" / "seconds_to_goal.json"
    if not runs.is_file():
        assert not between
        return
    text = run("--out", shutil.copy(runs, tmp_path))
    assert between == f"![Accuracy against seconds](figures/seconds_to_goal.png)\n\n{text.strip()}"
    assert (ROOT / "docs" / "figures" / "seconds_to_goal.png").stat().st_size <= 150_000
