"""Where a run writes, whatever its folders are called, and who may write there."""

import csv
import fcntl
import html
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import forked

AUDITED = Path(__file__).parents[1] / "audited.py"
TINY = [
    "num_steps=4",
    "holdout.refresh_steps=2",
    "irreducible.num_epochs=1",
    "seeds=[0]",
    "compare=[uniform]",
    "trainer.accelerator=cpu",
]
HOSTILE = "a ${b} [red]c[/x] = ,'d' \"e\" $f$ |g|\nh % é :smile: "


def reducr(*arguments, cwd, **environment):
    return forked.run(["-m", "reducr.cli", *arguments], cwd=cwd, env=os.environ | environment)


def quoted(value):
    """A value on the command line that is exactly this text."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'


def only_run(home, name="digits"):
    (folder,) = (home / name).iterdir()
    return folder


def test_nothing_is_written_outside_of_the_run_folder(tmp_path):
    """Hydra left ``cli.log`` and ``multirun.yaml`` in the working directory, and checkpoints went through $TMPDIR."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    options = [*TINY, "compare=[reducr]", "model_io.resume_seconds=0", f"model_io.home_dir={tmp_path / 'home'}"]
    command = [AUDITED, tmp_path / "home", "run", "-m", *options, "num_steps=2,4"]
    done = forked.run(command, cwd=tmp_path / "here", env=os.environ | {"TMPDIR": str(tmp_path / "temporary")})
    assert done.returncode == 0, done.stderr
    writes = [line for line in done.stdout.splitlines() if line.startswith("WRITES")]
    # the first to ask Python for the folder of temporary files makes it try to write there
    assert [line for line in writes if "temporary" not in line and not line.endswith("/here")] == []
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "temporary").iterdir()) == []
    assert len(list((tmp_path / "home" / "digits").iterdir())) == 2


CLASSES = ["[red]", "[/x] :smile:", "a|b *c*", "=1+1", "$x_1$ <b>", "line\nbreak \x1b[2J"]


def write_table(path):
    """Texts of six classes and two groups, whose names are hostile to whatever shows them."""
    rows = [[f"text {number % 6} {number}", CLASSES[number % 6], f"{{0}} %s {number % 2}"] for number in range(300)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "[label]", "[group]"], *rows])


OTHERS = ["${", "a${b}c", "\\${x}", "caf\udce9", "tab\tbell\a", "-x", "~", "ünï" * 20, "=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("name", [HOSTILE, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_names_are_text_wherever_they_are_shown(tmp_path, name, is_long_lane):
    """A working directory, a data set, a home, a file, columns, classes and groups with names of all kinds.

    Brackets in a path ended a finished run with a MarkupError, and ``train[v2].csv`` was told as ``train.csv``.
    """
    here, data, home = (tmp_path / place / name for place in ("work", "data", "home"))
    here.mkdir(parents=True)
    data.mkdir(parents=True)
    write_table(data / "train[v2].csv")
    options = [
        "experiment=table", *TINY, "compare=[reducr]", "num_candidates=60", "model=small_text", "name='[b]{0}$x$'",
        "datamodule.train_file='train[v2].csv'", "datamodule.target_column='[label]'", "datamodule.text_columns=[text]",
        "datamodule.group_column='[group]'", f"datamodule.data_dir={quoted(data)}",
        f"model_io.home_dir={quoted(home)}", "record.page=false",
    ]  # fmt: skip
    done = reducr("run", *options, cwd=here)
    assert done.returncode == 0, done.stderr
    run = only_run(home, "[b]{0}$x$")
    assert list(here.iterdir()) == []
    assert json.loads((run / "run.json").read_text())["started_in"] == str(here)
    done = reducr("report", run, *([] if is_long_lane else ["--no-points"]), cwd=here)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    table = (run / "report" / "accuracy_by_class.csv").read_text(errors="surrogateescape")
    assert [line[0] for line in csv.reader(table.splitlines())][1:] == sorted(
        ["[red]", "[/x] :smile:", "a|b *c*", "'=1+1", "$x_1$ <b>", "line\\nbreak \\x1b[2J"],
        key=lambda cell: cell.strip("'"),
    )
    markdown = (run / "results.md").read_text(errors="surrogateescape")
    assert "| \\[red\\] |" in markdown
    assert "| a\\|b \\*c\\* |" in markdown
    page = (run / "report.html").read_text(errors="surrogateescape")
    assert all(html.escape(cell) in page for cell in ("[red]", "[/x] :smile:", "a|b *c*", "=1+1", "$x_1$ <b>"))
    if is_long_lane:
        (run / "results.csv").unlink()
        for command in (["resume", run], ["export", run, "--fraction", "0.2", "--quota", "[red]=5"]):
            done = reducr(*command, cwd=here)
            assert done.returncode == 0, done.stderr
            assert "[red]: 5 of" in done.stdout or command[0] == "resume"
        facts = json.loads((run / "export" / "export.json").read_text(errors="surrogateescape"))
        assert facts["folder"] == str(run / "export")


def test_a_name_stays_inside_of_home(tmp_path):
    done = reducr("run", *TINY, "name=../../x", "model_io.home_dir=deep/home", cwd=tmp_path)
    assert done.returncode == 2
    assert "`name` must be the name of a folder inside of `model_io.home_dir`" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_of_two_runs_in_one_folder_one_is_refused(tmp_path):
    command = ["-m", "reducr.cli", "run", *TINY, "record.page=false", "model_io.run_dir=run"]
    both = [forked.start(command, cwd=tmp_path) for _ in range(2)]
    errors = {process.wait(60): process.communicate()[1] for process in both}
    del both
    assert sorted(errors) == [0, 2]
    assert "model_io.run_dir" in errors[2]
    assert len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 1 + 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("finished")
    done = reducr("run", *TINY, "compare=[reducr]", "model_io.run_dir=run", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "run"


def test_a_refused_resume_changes_nothing(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "report.html").write_text("the report of the process that has the lock")
    (folder / "results.csv").write_text("half")  # this is being written
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with (folder / "run.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = reducr("resume", folder, cwd=tmp_path)
    assert done.returncode == 2
    assert "Another process is using" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_states_that_a_killed_process_left_of_finished_parts_are_removed(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    states = [folder / "seed_0" / place / "resume" for place in ("reducr/checkpoints", "irreducible/plain")]
    for state in states:
        state.mkdir()
        (state / "step_000000004_0123456789abcdef.ckpt").write_bytes(bytes(1000))
    unfinished = folder / "seed_1" / "reducr" / "checkpoints" / "resume"
    unfinished.mkdir(parents=True)
    done = reducr("resume", folder, cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    assert [state.exists() for state in states] == [False, False]
    assert unfinished.exists()
    assert "reducr" in done.stdout


PHASES = {
    "the reference stage": "irreducible/plain/resume/step_*.ckpt",
    "the target training": "reducr/checkpoints/resume/step_*.ckpt",
    "testing": "reducr/checkpoints/last.ckpt",
}


def end_by_signal(command, *, number, cwd, phase):
    """Start a program, and end it once the first file of a phase is there."""
    process = forked.start(["-m", "reducr.cli", *command], cwd=cwd)
    while not any((cwd / "parts" / "seed_0").glob(PHASES[phase])):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(number)
    process.send_signal(number)  # schedulers may send it to a job and to its steps
    assert process.wait(60) in (128 + number, 0), process.communicate()
    return process


LONGER = [
    *TINY,
    "compare=[reducr]",
    "num_steps=200",
    "model_io.resume_seconds=0",
    "model.dropout=0.2",
    "record.page=false",
]


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path):
    """Slurm and Kubernetes send SIGTERM, and SIGKILL some seconds later."""
    command = ["run", *LONGER, "num_steps=20000", "model_io.run_dir=parts"]
    process = end_by_signal(command, number=signal.SIGTERM, cwd=tmp_path, phase="the target training")
    assert process.returncode == 128 + signal.SIGTERM
    assert "`reducr resume RUN` continues the run" in process.communicate()[1]
    assert (tmp_path / "parts/seed_0/reducr/checkpoints/last.ckpt").is_file()
    assert (tmp_path / "parts/seed_0/reducr/selected.npz").is_file()
    assert list((tmp_path / "parts").rglob(".*.partial")) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_ended_by_signals_in_each_phase_ends_like_one_that_was_not(tmp_path, number):
    options = [*LONGER, "irreducible.num_epochs=40"]
    done = reducr("run", *options, "model_io.run_dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = ["run", *options, "model_io.run_dir=parts"]
    for phase in PHASES:
        (tmp_path / "parts/seed_0/reducr/checkpoints/last.ckpt").unlink(missing_ok=True)  # an interrupted fit wrote it
        end_by_signal(command, number=number, cwd=tmp_path, phase=phase)
        command = ["resume", "parts"]
    done = reducr("resume", "parts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracies = [
        [line.split(",")[2:7] for line in (tmp_path / run / "results.csv").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.long
def test_a_run_without_a_terminal_is_not_ended_by_sighup(tmp_path):
    """As under ``nohup``, which lets programs ignore it."""
    command = ["-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + RUN_WITH_HANGUP]
    assert forked.run(command, cwd=tmp_path).returncode == 0
    assert forked.run(["-c", "import signal\n" + RUN_WITH_HANGUP], cwd=tmp_path).returncode == 128 + signal.SIGHUP


RUN_WITH_HANGUP = """
import os
from reducr import cli
from reducr.data.published.digits import Digits
read = Digits.read
def hang_up(self):
    os.kill(os.getpid(), signal.SIGHUP)
    return read(self)
Digits.read = hang_up
cli.main(["run", "seeds=[0]", "compare=[uniform]", "num_steps=2", "record.page=false", "holdout.refresh_steps=2"])
"""


def test_a_signal_ends_a_run_before_its_folder_exists(tmp_path):
    process = forked.start(["-c", SLOW_DATA], cwd=tmp_path)
    while not (tmp_path / "reading").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


SLOW_DATA = """
import sys, time
from pathlib import Path
from reducr import cli
from reducr.data.published.digits import Digits
def read(self):
    Path("reading").touch()
    time.sleep(60)
Digits.read = read
cli.main(["run", "seeds=[0]", "compare=[uniform]"])
"""
