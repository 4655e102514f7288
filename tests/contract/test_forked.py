"""Forked programs are processes of their own, as if an interpreter had been started for each."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import forked

SAY = """
import json, os, sys
import numpy as np
print(json.dumps({
    "pid": os.getpid(), "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "environment": dict(os.environ),
    "name": __name__, "drawn": np.random.rand(), "threads": os.listdir(f"/proc/{os.getppid()}/task"),
    "loaded": [name for name in ("torch", "lightning", "transformers", "reducr") if name in sys.modules],
}))
"""


def said(tmp_path, command, **options):
    done = forked.run(command, cwd=tmp_path, check=True, **options)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts the server's threads in /proc")
def test_a_program_has_its_own_process_arguments_folder_environment_and_random_numbers(tmp_path):
    first, second = (said(tmp_path, ["-c", SAY, "a", 3], env={"ONLY": "this"}) for _ in range(2))
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert first["argv"] == ["-c", "a", "3"]
    assert (first["name"], first["path"], first["cwd"]) == ("__main__", "", str(tmp_path))
    assert first["environment"] == {"ONLY": "this"}
    assert first["drawn"] != second["drawn"]
    assert first["loaded"] == ["torch", "lightning", "transformers", "reducr"]
    assert len(first["threads"]) == 1  # a server with threads could fork while one of them holds a lock


def test_scripts_and_modules_are_found_as_an_interpreter_finds_them(tmp_path):
    (tmp_path / "folder").mkdir()
    script = tmp_path / "folder" / "script.py"
    script.write_text(SAY)
    assert said(tmp_path, [script])["path"] == str(script.parent)
    (tmp_path / "module.py").write_text(SAY)
    assert said(tmp_path, ["-m", "module", "b"])["path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("code", "status", "errors"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a message')", 1, "a message\n"),
        ("raise SystemExit(None)", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(print, 'at the end', file=sys.stderr)", 0, "at the end\n"),
        ("import warnings; warnings.warn('careful')", 1, "UserWarning: careful\n"),
    ],
)
def test_exit_statuses_and_errors_are_those_of_an_interpreter(code, status, errors):
    done = forked.run(["-W", "error", "-c", code])
    assert done.returncode == status
    assert done.stderr.endswith(errors)
    assert bool(done.stderr) == bool(errors)


def test_a_program_can_be_waited_for_interrupted_and_killed():
    sleep = ["-c", "print('began', flush=True); import time; time.sleep(60)"]
    program = forked.start(sleep)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)
    assert program.poll() is None
    program.kill()
    assert program.wait(60) == -signal.SIGKILL
    interrupted = forked.start(sleep)
    while "began" not in interrupted.read():
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    output, errors = interrupted.communicate(60)
    assert (output, interrupted.returncode) == ("began\n", -signal.SIGINT)
    assert errors.endswith("KeyboardInterrupt\n")
    interrupted.kill()  # it has ended, and its pid may be another's
