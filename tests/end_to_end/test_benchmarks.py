"""Every benchmark runs at a tiny size and reports what it claims to; the documented table matches the results."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import results
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import Figure, duration, ratios, time_alternately

import forked
import local_data

ROOT = Path(__file__).parents[2]
NUM_FIGURES = {
    "steps_mlp": 4,
    "steps_cnn": 2,
    "steps_resnet18": 2,
    "training_mlp": 1,
    "training_cnn": 1,
    "irreducible_mlp": 2,
    "irreducible_cnn": 2,
    "table_building_mlp": 1,
    "table_building_cnn": 1,
    "lookup": 3,
    "choosing": 3,
    "growth": 3,
    "loading": 1,
    "before_loading": 4,
    "kept_memory": 1,
    "chunked_scoring": 2,
    "overlap_mlp": 1,
    "overlap_cnn": 1,
    "start": 1,
}
MAY_BE_ZERO_OR_NEGATIVE = re.compile("exponent|memory|pages")


def run(name, *arguments):
    done = forked.run(["-W", "error", ROOT / "benchmarks" / f"{name}.py", *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_stream(tmp_path):
    out = tmp_path / "rows.json"
    text = [run("stream", "--points", 20_000, "--out", out) for _ in range(2)][1]
    rows = json.loads(out.read_text())
    assert len(rows) == 2
    row = rows[1]
    assert (row["benchmark"], row["points"], row["baseline_points"]) == ("stream", 20_000, 2_000)
    assert 0 < row["baseline_megabytes"] <= row["peak_megabytes"]
    assert row["growth_megabytes"] <= 50
    assert row["worst_class_accuracy"] == rows[0]["worst_class_accuracy"] > 0
    assert re.findall(r"^\| ([\d,]+) \| \d+\.\d \| \d+\.\d \|$", text, flags=re.MULTILINE) == ["2,000", "20,000"]
    assert f"\n{row['growth_megabytes']} MB more after the first 2,000 examples" in text
    assert "2000 of 20000 candidates selected (0.100)" in text


@pytest.mark.long
def test_shift(tmp_path):
    local_data.fashion_mnist(tmp_path)
    options = ["--data-dir", tmp_path, "--holdout-size", 100, "--steps", 128, "--seeds", 0, 1, "--rare", "Bag", "Coat"]
    header, line, *rows = (
        [cell.strip() for cell in row.strip("|").split("|")] for row in run("shift", *options).splitlines()
    )
    assert header[1:3] == ["last 8 steps before", "first 4 after"]
    assert header[-2:] == ["lead of Bag at the switch", "steps until Coat outweighs it"]
    assert len(line) == len(header)
    assert [row[0].split(", step_size")[0] for row in rows] == [
        "uniform", "rho_loss", "reducr, payoff_decay 1", "reducr, payoff_decay 0.99", "reducr, payoff_decay 0.98"
    ]  # fmt: skip
    for row in rows:
        assert len(row) == len(header)
        assert all(re.fullmatch(r"[01]\.\d{3} ± \d\.\d{3}", cell) for cell in row[1:6])
        if row[0].startswith("reducr"):
            assert re.fullmatch(r"\d\.\d\d / \d\.\d\d", row[6])
            assert re.fullmatch(r"-?\d+\.\d, -?\d+\.\d", row[7])
            assert all(steps == "never" or 0 <= int(steps) < 32 for steps in row[8].split(", "))
        else:
            assert row[6:] == ["–", "–", "–"]


@pytest.mark.long
def test_every_benchmark(tmp_path):
    path, document = tmp_path / "results.json", tmp_path / "performance.md"
    document.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    options = ["--tiny", "--results", str(path), "--document", str(document)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = results.read(path)
    assert {name: len(result["figures"]) for name, result in first.items()} == NUM_FIGURES
    for result in first.values():
        assert re.fullmatch(r"[0-9a-f]{10}\+?|unknown", result["commit"])
        assert result["machine"]["threads"] == 1 <= result["machine"]["cores"]
        assert result["machine"]["processor"]
        assert result["machine"]["memory_gib"] > 0
        assert list(result["versions"]) == ["python", "torch", "numpy", "lightning", "reducr"]
        assert result["versions"]["torch"] == torch.__version__
        for figure in result["figures"]:
            (value,) = figure["values"]
            assert math.isfinite(value)
            assert value > 0 or MAY_BE_ZERO_OR_NEGATIVE.search(figure["what"]), figure
            assert figure["median"] == value
            assert figure["quartiles"] == [value, value]
    before, *lines, after = document.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert "old" not in lines
    assert sum(line.startswith("| ") for line in lines) == 2 + sum(NUM_FIGURES.values())

    # some of them again: the others stay as they are
    main(["growth", "choosing", "--tiny", "--repetitions", "3", "--results", str(path)])
    second = results.read(path)
    assert list(second) == list(first) == list(BENCHMARKS)
    for name, result in second.items():
        if name in ("growth", "choosing"):
            assert [len(figure["values"]) for figure in result["figures"]] == [3, 3, 3]
        else:
            assert result == first[name]


def test_documented_table_is_that_of_the_results(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text((ROOT / "docs/performance.md").read_text())
    kept = results.read(ROOT / "benchmarks/results.json")
    assert kept.keys() <= BENCHMARKS.keys()
    results.put_table(copy, kept)
    assert copy.read_text() == (ROOT / "docs/performance.md").read_text(), "python -m benchmarks --table"


def test_table(tmp_path):
    figures = [
        Figure("step of a loop", [1.3, 1.1, 1.2, 1.25], at_most=1.2, over="floor, 2 ms"),
        Figure("examples per second", [7.0], at_least=5.0),
        Figure("memory", [12.34, 12.36], unit="MB"),
    ]
    made_in = {
        "commit": "0123456789",
        "machine": {"processor": "a processor", "cores": 2, "threads": 1, "memory_gib": 3.9},
        "versions": {"python": "3.11.2", "torch": "2.6.0"},
    }
    path, document = tmp_path / "results.json", tmp_path / "document.md"
    document.write_text(f"{results.BEGIN}{results.END}")
    kept = {"gone": {}, "b": results.entry(figures[1:], made_in), "a": results.entry(figures[:1], made_in)}
    results.write(path, kept, order=["a", "b", "not_measured"])
    results.put_table(document, results.read(path))
    assert document.read_text().splitlines()[2:-2] == [
        "| what | target | median | quartiles | over | met |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        "| step of a loop | ≤ 1.2 | 1.225 | 1.175 to 1.262 | floor, 2 ms | **no** |",
        "| examples per second | ≥ 5 | 7.000 | 7.000 to 7.000 |  | yes |",
        "| memory |  | 12.3 MB | 12.3 to 12.4 |  |  |",
        "",
        "a processor, 2 cores, 1 threads, 3.9 GiB; python 3.11.2, torch 2.6.0; commit 0123456789: a, b.",
    ]
    with pytest.raises(ValueError, match=r"document.md must contain .* exactly once each; the table goes between them"):
        results.put_between(document, "text", begin="<!-- none -->", end=results.END)
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match=r"results.json has format 0; this version reads format 1\. Remove it\."):
        results.read(path)


def test_tasks_are_timed_alternately():
    calls = []

    def thing(name, seconds):
        return lambda: calls.append(name) or seconds

    first, second = time_alternately(thing("a", 2.0), thing("b", 3.0), repetitions=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert ratios(second, first) == [1.5, 1.5, 1.5]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [([2.0, 1.0, 3.456], "2 s"), ([1.8444], "1.84 s"), ([6.2e-4], "620 µs"), ([0.0125], "12.5 ms")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps_mlp", "step_cnn"], "there is no benchmark step_cnn; choose from steps_mlp, steps_cnn,"),
        (["--repetitions", "0"], "--repetitions must be at least 1; got 0"),
    ],
)
def test_unknown_names_and_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
