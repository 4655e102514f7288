"""Errors for unknown names and options, with the nearest known names."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: str, known: Iterable[str], *, of: str | None = None) -> ValueError:
    """A ValueError for an unknown ``name`` that gives the nearest known names, then all of them.

    Args:
        kind: what is named, such as ``column``.
        name: the unknown name.
        known: all valid names.
        of: what it belongs to, such as ``train.csv``.

    Example:
        >>> unknown_name("column", "txet", ["text", "label"], of="train.csv")
        ValueError("unknown column 'txet' of train.csv. Did you mean 'text'? There are: label, text.")
    """
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    owner = "" if of is None else f" of {of}"
    return ValueError(f"unknown {kind} {name!r}{owner}.{suggestion} There are: {', '.join(sorted(known)) or 'none'}.")


def check_options(
    owner: str, build: Callable[..., Any], options: Mapping[str, Any], *, also: Iterable[str] = ()
) -> None:
    """Raise ValueError for the first of ``options`` that ``build`` does not take as a keyword.

    Args:
        owner: what the options belong to, for the message.
        build: a class or function; its keyword-only parameters are the valid options.
        options: the options that the user set.
        also: further valid names.
    """
    parameters = inspect.signature(build).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + list(also)
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known, of=owner)
