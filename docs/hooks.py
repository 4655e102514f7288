"""What is done to pages and docstrings before mkdocs builds them."""

import re
from typing import Any

import griffe

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leave of a link to a file of the repository that is not a page its text alone."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(r"\1", markdown)


class Examples(griffe.Extension):
    """Shows ``Example:`` in a docstring as code, as ``Examples:`` is."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
