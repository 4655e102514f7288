"""The table of ``benchmarks.features`` on the real texts, with one draw of few clean rows."""

import os
from pathlib import Path

import pytest
from benchmarks.features import main

DATA_DIR = Path(os.environ.get("REDUCR_DATA_DIR", "nowhere"))


@pytest.mark.long
@pytest.mark.skipif(not (DATA_DIR / "noisy_ag_news").is_dir(), reason="needs noisy_ag_news in REDUCR_DATA_DIR")
def test_the_table(capsys):
    main(["--data-dir", str(DATA_DIR), "--clean-rows", "50", "--draws", "1"])
    head, _, *rows, seconds = capsys.readouterr().out.splitlines()
    assert head.endswith("RobustClassifier | *all rows with their true labels* |")
    names = [cell.strip() for cell in head.split("|")[3:-1]]
    by_people = dict(zip(names, rows[0].split("|")[3:-1], strict=True))
    worst = {name: float(cell.split("/")[0].split("±")[0]) for name, cell in by_people.items()}
    assert worst["RobustClassifier"] > worst["all rows, class weights"] + 0.08
    assert worst["RobustClassifier"] > worst["the clean rows alone"]
    assert len(rows) == 4
    assert seconds.startswith("| *processor seconds*")
