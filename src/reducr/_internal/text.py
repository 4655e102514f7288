"""Show text that comes from users and their files as it is: one line, with nothing that a terminal would obey."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_ALSO_CONTROL = re.compile(r"[\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""``text`` with control characters, which move the cursor or hide text, as escapes such as ``\n`` and ``\x1b``.

    Example:
        >>> one_line("a\nb\x1b[2J[c]")
        'a\\nb\\x1b[2J[c]'
    """
    return _CONTROL.sub(_escape, text)


def plain_text(text: str) -> str:
    r"""``one_line``, and what is no text at all, such as bytes in the name of a file that are not UTF-8, escaped too.

    Example:
        >>> plain_text("caf\udce9")
        'caf\\xe9'
    """
    return _ALSO_CONTROL.sub(_escape, one_line(text))


def without_escapes(text: str) -> str:
    """``text`` of several lines, with tabs as four spaces and all other control characters escaped."""
    return "\n".join(one_line(line.replace("\t", "    ")) for line in text.split("\n"))


def html_text(text: str) -> str:
    r"""``text`` of one or several lines as HTML that shows it as it is, with control characters as escapes.

    Example:
        >>> html_text("<b>\x1b[2J")
        '&lt;b&gt;\\x1b[2J'
    """
    return html.escape(without_escapes(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return repr(match[0])[1:-1]
