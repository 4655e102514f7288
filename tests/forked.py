"""Python programs in processes of their own, without the seconds that a new interpreter takes to import.

``start`` and ``run`` take the place of ``subprocess.Popen`` and ``subprocess.run`` for commands that begin with
``sys.executable``. A server process has imported torch, Lightning, Hydra, transformers and ``reducr``, and has run
nothing. Each program is a fork of it: a real process with its own pid, arguments, environment, working directory and
output, which can be killed. Imports are what a fork does not test, so some tests start new interpreters all the same.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from multiprocessing import forkserver, process
from pathlib import Path

FOLDER = Path(__file__).parent
PRELOADED = [
    "torch", "lightning.pytorch", "hydra", "torchmetrics", "sklearn.model_selection", "sklearn.datasets",
    "matplotlib.pyplot", "rich.live", "transformers.trainer", "datasets", "accelerate", "reducr.cli", "reducr.pipeline",
    "reducr.hugging_face",
]  # fmt: skip
# a server with threads must not fork: no pool of OpenMP, and none for pyarrow's memory
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | {
    "JE_ARROW_MALLOC_CONF": "background_thread:false"
}


class Program:
    """A running program, with the interface of ``subprocess.Popen`` as far as tests use it."""

    def __init__(self, command, *, cwd=None, env=None, stderr_to_stdout=False):
        self.args = command
        self._output = [tempfile.NamedTemporaryFile("w+") for _ in range(1 if stderr_to_stdout else 2)]  # noqa: SIM115
        weakref.finalize(self, _close, self._output)
        paths = [self._output[0].name, self._output[-1].name]
        environment = dict(os.environ if env is None else env)
        self._process = _context().Process(
            target=_become,
            args=([str(word) for word in command], str(cwd or Path.cwd()), environment, paths),
            name="MainProcess",
            daemon=True,  # ends with the tests at the latest
        )
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def read(self):
        """Return what it has written to standard output so far."""
        return Path(self._output[0].name).read_text()

    def communicate(self, timeout=None):
        """Wait for its end, and return what it has written to standard output and standard error."""
        self.wait(timeout)
        return tuple(Path(file.name).read_text(errors="surrogateescape") for file in self._output)


def _close(files):
    for file in files:
        file.close()


def start(command, **options):
    """Start ``python`` with the arguments ``command``: ``[-W error] (script | -m module | -c code) arguments...``."""
    return Program(command, **options)


def run(command, *, timeout=600, check=False, **options):
    """Run a program to its end."""
    program = start(command, **options)
    try:
        output = program.communicate(timeout)
    finally:
        program.kill()
        program.wait()
    if check and program.returncode:
        raise subprocess.CalledProcessError(program.returncode, command, *output)
    return subprocess.CompletedProcess(command, program.returncode, output[0], output[-1])


def _context():
    """Start the server with the first program; ``multiprocessing`` keeps it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _become(command, folder, environment, paths):
    """Turn a fork of the server into the process of a program, and end as an interpreter does."""
    process.current_process()._config.pop("daemon", None)  # a program may have children
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, the tests themselves ignore it
    _redirect(paths, is_unbuffered="PYTHONUNBUFFERED" in environment)
    _seed_afresh()
    status = 0
    try:
        _run_program(command)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(status & 0xFF)


def _redirect(paths, *, is_unbuffered):
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8", buffering=-1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=is_unbuffered)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr


def _seed_afresh():
    """Forks share the server's random states; new interpreters do not. (``random`` sees to itself.)"""
    import numpy as np

    np.random.seed()  # noqa: NPY002


def _run_program(command):
    """What ``python *command`` does once it has started."""
    sys.warnoptions[:] = []
    while command[0] == "-W":
        warnings.simplefilter(command[1])
        sys.warnoptions.append(command[1])
        command = command[2:]
    path = [entry for entry in sys.path if entry and Path(entry).resolve() not in (FOLDER, FOLDER.parent)]
    option = command[0]
    if option in ("-m", "-c"):
        sys.path = ["" if option == "-c" else str(Path.cwd()), *path]
        sys.argv = [option, *command[2:]]
        if option == "-m":
            sys.modules.pop(command[1], None)
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            names = sys.modules["__main__"].__dict__
            names["__name__"] = "__main__"
            exec(compile(command[1], "<string>", "exec"), names)
    else:
        sys.path = [str(Path(option).resolve().parent), *path]
        sys.argv = list(command)
        runpy.run_path(option, run_name="__main__")
