import re
from dataclasses import replace
from pathlib import Path

import pytest

from reducr._internal.reading import DamagedFileError
from reducr._internal.run_folder import (
    RESULT_COLUMNS,
    ResultRow,
    check_folder_name,
    claim,
    create_run_folder,
    is_locked,
    read_results,
    run_lock,
    write_results,
)
from reducr._internal.run_start import RunStart, write_start
from reducr.reports.run_reader import Run

ROW = ResultRow(
    method="reducr",
    seed=3,
    checkpoint_rule="last",
    worst_class_accuracy=0.625,
    worst_group_accuracy=0.5,
    mean_accuracy=0.75,
    steps=1000,
    irreducible_seconds=10.5,
    selection_seconds=2.25,
    training_seconds=4.0,
    total_seconds=20.125,
    selected_fraction=0.1,
    corrupted_fraction=None,
)


def test_rows_survive_writing_and_reading(tmp_path):
    rows = [ROW, replace(ROW, method="uniform", selected_fraction=None, corrupted_fraction=0.3)]
    write_results(tmp_path, rows)
    assert read_results(tmp_path) == rows
    assert (tmp_path / "results.csv").read_text() == (
        ",".join(RESULT_COLUMNS)
        + "\nreducr,3,last,0.625,0.5,0.75,1000,10.5,2.25,4,20.125,0.1,"
        + "\nuniform,3,last,0.625,0.5,0.75,1000,10.5,2.25,4,20.125,,0.3\n"
    )


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no results.csv: it is not a run folder")):
        read_results(tmp_path)
    (tmp_path / "results.csv").write_text("method,seed\n")
    with pytest.raises(ValueError, match=r"has the columns \['method', 'seed'\]; expected \['method'"):
        read_results(tmp_path)


def test_new_folders_never_reuse_an_old_one(tmp_path):
    folders = [create_run_folder(tmp_path, "digits") for _ in range(5)]
    assert len(set(folders)) == 5
    assert all(folder.parent == tmp_path / "digits" and not any(folder.iterdir()) for folder in folders)


def test_a_home_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"runs/digits cannot be made: .* Set `model_io\.home_dir`"):
        create_run_folder(Path("runs"), "digits")


def test_a_given_folder_must_be_new_or_empty(tmp_path):
    assert create_run_folder(tmp_path, "digits", run_dir=tmp_path / "new") == tmp_path / "new"
    assert create_run_folder(tmp_path, "digits", run_dir=tmp_path / "new").is_dir()
    (tmp_path / "new" / "results.csv").write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not empty; a run is never overwritten"):
        create_run_folder(tmp_path, "digits", run_dir=tmp_path / "new")
    assert (tmp_path / "new" / "results.csv").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="a run is never overwritten"):
        create_run_folder(tmp_path, "digits", run_dir=tmp_path / "file")


@pytest.mark.parametrize("name", ["digits", "mine/digits", "a.b", "[x] $y |z", "..a", "a..", "CONfused", "é" * 100])
def test_names_of_folders(name):
    check_folder_name("name", name)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "",
        "/tmp/x",
        "a//b",
        "a/",
        "a/../../b",
        "a/./b",
        "a\0b",
        "a\nb",
        "a\\b",
        "NUL",
        "con.txt",
        "x" * 300,
    ],
)
def test_names_that_leave_home_or_no_folder_can_have_are_refused(name):
    with pytest.raises(ValueError, match=r"^`name` must be the name of a folder inside of `model_io\.home_dir`"):
        check_folder_name("name", name)


def test_of_processes_that_find_a_folder_empty_one_gets_it(tmp_path):
    claim(tmp_path)
    with pytest.raises(FileExistsError, match=r"Another process has just started a run in .* Set `model_io\.run_dir`"):
        claim(tmp_path)


def test_a_run_that_was_killed_before_it_began_is_told_from_a_damaged_one(tmp_path):
    """Killed after each of the first files: nothing was trained, and a copy of run.json exists nowhere."""
    claim(tmp_path)
    for name in ("manifest.jsonl", "config.yaml", ".command.txt.7.partial", "command.txt"):
        for read in (RunStart.read, Run.read):
            with pytest.raises(ValueError, match=r"^The run in .* never began: .* start the run again\.$"):
                read(tmp_path)
        with pytest.raises(FileExistsError, match=r"stopped before that run began\. .* remove this one first\."):
            create_run_folder(tmp_path, "a", run_dir=tmp_path)
        (tmp_path / name).write_text("a: 1\n")
    (tmp_path / "seed_0").mkdir()
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged"):
        RunStart.read(tmp_path)


def test_only_one_process_at_a_time_can_use_a_run_folder(tmp_path):
    write_start(tmp_path, command="run")
    with run_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ValueError, match=re.escape(f"Another process is using {tmp_path}.")), run_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        pass
