"""Old names that keep working for one minor release (the policy is in CONTRIBUTING.md).

All of them emit a ``FutureWarning``, which Python shows once for each line that uses an old name.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, *, removed_in: str, stacklevel: int = 2) -> None:
    """Warn that ``old`` is now ``new``; by default at the line that called the caller of this function."""
    message = f"`{old}` was renamed to `{new}`. The old name will be removed in reducr {removed_in}."
    warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)


def module_getattr(module: str, renamed: Mapping[str, str], *, removed_in: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that answers old names with what their new names hold."""

    def getattr_(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{renamed[name]}", removed_in=removed_in)
        return getattr(sys.modules[module], renamed[name])

    return getattr_


def renamed_attribute(old: str, new: str, *, removed_in: str) -> property:
    """A property that reads and writes the attribute or method ``new`` under its ``old`` name."""

    def read(self: Any) -> Any:
        warn_renamed(old, new, removed_in=removed_in)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_renamed(old, new, removed_in=removed_in)
        setattr(self, new, value)

    return property(read, write)


def renamed_parameters(renamed: Mapping[str, str], *, removed_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it takes keyword arguments by their old names too; both at once are a TypeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in renamed.keys() & kwargs.keys():
                if renamed[old] in kwargs:
                    raise TypeError(f"{function.__name__}() got both `{old}` and its new name `{renamed[old]}`.")
                warn_renamed(old, renamed[old], removed_in=removed_in)
                kwargs[renamed[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
