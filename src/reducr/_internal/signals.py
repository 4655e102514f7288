"""End a process on SIGTERM and SIGHUP as on Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")
_SECONDS_TO_REPEAT = 5.0
"""Schedulers send a signal to a job and to each of its steps, so the same process may get it twice at once."""


class _Received:
    number: int | None = None
    at = 0.0


_received = _Received()


def received_signal() -> int | None:
    """The signal that stops this process; None if there was none."""
    return _received.number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when the process gets SIGTERM or SIGHUP.

    Signals that are ignored (``nohup``) or have a handler are left alone. A second signal within five seconds is taken
    for the same one; a later one interrupts what the first one has started, such as the report.
    """
    handlers = {}
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is not signal.SIG_DFL:
            continue
        try:
            handlers[number] = signal.signal(number, _stop)
        except ValueError:  # not the main thread
            break
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _received.number is not None and now - _received.at < _SECONDS_TO_REPEAT:
        return
    _received.number, _received.at = number, now
    if number == getattr(signal, "SIGHUP", None):
        _leave_terminal()
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Write to nowhere instead of a terminal that has been closed, where each write is an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            is_terminal = os.isatty(stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
        if is_terminal:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
