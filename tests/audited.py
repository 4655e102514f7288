"""``python audited.py FOLDER COMMAND...``: ``reducr COMMAND``, which prints what it writes outside of FOLDER."""

import os
import runpy
import sys
from pathlib import Path

OUTSIDE = set()
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TARGET = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}
HOME = Path.home()
NOT_OURS = ("/dev/", "/proc/", str(HOME / ".cache"), str(HOME / ".config"))


def main(inside, *command):
    def note(event, arguments):
        if event == "open":
            path, _, flags = arguments
            is_written = isinstance(path, str | bytes) and bool((flags or 0) & OPENED_TO_WRITE)
        else:
            is_written = event in TARGET
            path = arguments[TARGET[event]] if is_written else ""
        if is_written:
            absolute = str(Path(os.fsdecode(path)).absolute())
            if not absolute.startswith((inside, *NOT_OURS)) and "torchinductor" not in absolute:
                OUTSIDE.add(absolute)

    sys.addaudithook(note)
    sys.argv = ["reducr", *command]
    try:
        runpy.run_module("reducr.cli", run_name="__main__", alter_sys=True)
    finally:
        for path in sorted(OUTSIDE):
            print("WRITES", path)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
