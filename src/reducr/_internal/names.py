"""Unknown names and options, answered with the nearest ones that exist."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """A ValueError that says which names come nearest to ``name``, and which there are."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{meant} There are: {', '.join(sorted(known)) or 'none'}.")


def check_options(
    kind: str, build: Callable[..., Any], options: Mapping[str, Any], *, also: Iterable[str] = ()
) -> None:
    """Raise ValueError if ``build`` takes no keyword of the name of one of ``options``.

    Args:
        kind: what is built, for the message.
        build: a class or function whose keyword-only parameters are the options.
        options: what the user gave.
        also: further names that are accepted.
    """
    parameters = inspect.signature(build).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + list(also)
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {kind}", name, known)
