"""The study: a tiny table leaves what it says, and the document says what the runs say."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = ["REDUCR, priority sampling", "class-balanced", "irreducible model alone"]


@pytest.fixture
def study(monkeypatch):
    """The modules of the benchmark."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.study.__main__")


@pytest.fixture
def run(study, capsys):
    """What a command prints."""

    def printed(*arguments):
        study.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return printed


@pytest.mark.long
def test_tiny_table(tmp_path, run, capsys):
    options = ["digits", "--data-dir", tmp_path, "--out", tmp_path, "--tiny", "--seconds", 0.3, "--num-seeds", 1]
    options += ["--jobs", 2]

    first = run(*options, "--rows", *ROWS[:2])
    assert len(re.findall(r"seed 100: worst class 0\.\d{3}, mean 0\.\d{3}", first)) == 6  # three trials of each
    assert len(re.findall(r"seed 0: worst class", first)) == 2
    content = json.loads((tmp_path / "digits.json").read_text())
    assert content["conditions"]["seconds"] == 0.3
    assert len(content["runs"]) == 8
    for one in content["runs"]:
        assert one["steps"] >= 1
        assert one["irreducible_seconds"] < 0.3
        assert 0 <= one["corrupted"] <= 1
        for half in ("tuning", "report"):
            for rule in ("last", "best_worst_group", "best_mean"):
                assert 0 <= one[f"{half}/{rule}/worst"] <= one[f"{half}/{rule}/mean"] <= 1

    second = run(*options, "--rows", *ROWS)
    assert set(re.findall(r"\d+ of \d+: (.+), seed", second)) == {ROWS[2]}  # what is missing alone
    after = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert len(after) == 12
    assert all(one in after for one in content["runs"])

    with pytest.raises(SystemExit, match="2"):
        run(*options, "--seconds", 0.4)
    assert "were made with another seconds. Set `--out` to another file" in capsys.readouterr().err


@pytest.mark.long
def test_a_budget_that_the_irreducible_stage_uses_up_is_an_error(study, tmp_path):
    runs = importlib.import_module("benchmarks.study.runs")
    job = runs.Job("digits", (), runs.Row("REDUCR", "reducr"), 0, 0.01)
    with pytest.raises(
        ValueError, match=r"reducr: the irreducible stage alone takes longer than 0.01 s. Give the runs more"
    ):
        list(runs.run_jobs([job], num_processes=1))


def test_unknown_names_and_numbers(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("digit")
    assert "there is no table 'digit'; choose from digits, fashion_mnist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("digits", "--rows", "class balanced")
    assert (
        "table 'digits' has no row 'class balanced'; choose from 'REDUCR, priority sampling', "
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="2"):
        run("digits", "--num-seeds", "-1")
    assert "--seconds, --num-seeds and --jobs must be above 0" in capsys.readouterr().err


def test_without_a_table_those_that_have_been_run_are_shown(run, tmp_path, capsys):
    shutil.copy(ROOT / "benchmarks/study/digits.json", tmp_path)
    assert run("--out", tmp_path).count("**") == 2
    with pytest.raises(SystemExit, match="2"):
        run("ablations", "--out", tmp_path)
    assert "Set --data-dir to the folder of the data" in capsys.readouterr().err


@pytest.mark.long
def test_every_row_of_every_table_composes(study):
    """With options of its own, and a key that no other row of the table has."""
    runs = importlib.import_module("benchmarks.study.runs")
    setup = importlib.import_module("reducr.pipeline.setup")
    for name, table in study.TABLES.items():
        rows = [one.row.with_options(*trial) for one in table.contenders for trial in one.trials]
        assert len({row.key(0) for row in rows}) == len(rows)
        assert len({(one.row.label, one.row.block) for one in table.contenders}) == len(table.contenders)
        rows_of_digits = name in ("fashion_mnist", "cifar10n_worse", "tweeteval_emoji", "cifar10_clean")
        for row in [one.row.with_options(*one.trials[-1]) for one in table.contenders][rows_of_digits * 14 :]:
            config = runs.composed_config(runs.Job(table.experiment, table.options, row, 0, 1.0))
            (method,) = setup.methods_of(config)
            assert method.name == row.method
            assert sum(method.num_examples(config.fraction, config.num_candidates)) >= 10
            method.make_selector(3)


def made_run(row, seed, *, worst, mean=0.8, tuning=(0.0, 0.0)):
    method, options, seed = row.key(seed)
    values = {f"report/{rule}/{name}": value for rule in ("last", "best_worst_group", "best_mean") for name, value in
              (("worst", worst), ("mean", mean))}  # fmt: skip
    tuned = {"tuning/last/worst": tuning[0], "tuning/last/mean": tuning[1]}
    return {"method": method, "options": options, "seed": seed, "steps": 100, "corrupted": 0.25, **values, **tuned}


def test_arithmetic(study, tmp_path):
    """The best trial on the tuning seed is the one reported; differences are paired by seed."""
    tables = importlib.import_module("benchmarks.study.tables")
    make_row = importlib.import_module("benchmarks.study.runs").Row
    row, other = make_row("REDUCR", "first"), make_row("second", "second")
    trials = (("optimizer.lr=1",), ("optimizer.lr=2",), ("optimizer.lr=3",))
    table = tables.Table(
        "A table", "digits", 4.0, (tables.Contender(row, trials), tables.Contender(other)), num_seeds=2
    )
    scores = [(0.3, 0.9), (0.4, 0.5), (0.4, 0.6)]  # the last, by its mean
    runs = [
        made_run(row.with_options(*trial), 100, worst=0.0, tuning=score)
        for trial, score in zip(trials, scores, strict=True)
    ]
    runs += [made_run(row.with_options(*trials[2]), seed, worst=worst) for seed, worst in enumerate((0.5, 0.7))]
    runs += [made_run(row.with_options(*trials[1]), seed, worst=0.9) for seed in range(2)]
    runs += [made_run(other, seed, worst=worst, mean=0.75) for seed, worst in enumerate((0.4, 0.58))]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"conditions": {"seconds": 4.0, "machine": {"processor": "a core"}}, "runs": runs}))
    lines = study.markdown_report(table, study.RunStore.read(path, study.KEY)).splitlines()
    assert lines[0] == "**A table**, 4 s of one core (a core), 2 seeds"
    assert "| REDUCR | 0.600 ± 0.141 | – | 0.800 ± 0.000 | – | 100 | 0.250 |" in lines
    # differences 0.10 and 0.12: 0.11 ± 12.706 * 0.01414 / sqrt(2)
    assert (
        "| second | 0.490 ± 0.127 | +0.110 [-0.017, +0.237] | 0.750 ± 0.000 | +0.050 [+0.050, +0.050] | 100 | 0.250 |"
    ) in lines
    assert "Differences to second, the best other method in the worst class:" in lines
    assert "- REDUCR: worst class +0.110 [-0.017, +0.237], mean +0.050 [+0.050, +0.050]" in lines
    assert "| REDUCR | 0.600 ± 0.141 | 0.800 ± 0.000 | 0.600 ± 0.141 | 0.800 ± 0.000 | `lr=3` |" in lines


def test_document_says_what_the_runs_say(study, tmp_path, run):
    document = study.DOCUMENT.read_text()
    for name in study.TABLES:
        begin, end = (f"<!-- {mark} of the study: {name} -->" for mark in ("begin", "end"))
        between = document.split(begin)[1].split(end)[0].strip()
        runs = study.FOLDER / f"{name}.json"
        if not runs.is_file():
            assert between == "Not run yet."
            continue
        shutil.copy(runs, tmp_path)
        assert run(name, "--out", tmp_path).strip() == between
