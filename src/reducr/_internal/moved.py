"""Old import paths of classes that configurations name as ``_target_``, and where these classes are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reducr._internal.deprecation import warn_renamed

MOVED = {
    "reducr.data.cifar": "reducr.data.published.cifar",
    "reducr.data.cinic10": "reducr.data.published.cinic10",
    "reducr.data.clothing1m": "reducr.data.published.clothing1m",
    "reducr.data.digits": "reducr.data.published.digits",
    "reducr.data.fashion_mnist": "reducr.data.published.fashion_mnist",
    "reducr.data.glue": "reducr.data.published.glue",
    "reducr.data.hugging_face": "reducr.data.own.hugging_face",
    "reducr.data.image_folder": "reducr.data.own.image_folder",
    "reducr.data.mnli": "reducr.data.published.mnli",
    "reducr.data.qqp": "reducr.data.published.qqp",
    "reducr.data.table": "reducr.data.own.table",
    "reducr.data.transforms": "reducr.data.core.transforms",
    "reducr.data.waterbirds": "reducr.data.published.waterbirds",
    "reducr.integrations.lightning": "reducr.lightning",
    "reducr.models.ensemble": "reducr.irreducible.ensemble",
}
"""Old dotted prefix -> new dotted prefix."""


def current_path(path: str) -> str:
    """Dotted path of an object today; a path that has not moved is returned as it is.

    Example:
        >>> current_path("reducr.data.digits.Digits"), current_path("reducr.models.MLP")
        ('reducr.data.published.digits.Digits', 'reducr.models.MLP')
    """
    for old, new in MOVED.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path


def with_current_targets(node: Any) -> Any:
    """Copy of nested dicts and lists in which each ``_target_`` is a current path.

    Warns:
        FutureWarning: for each path that has moved; names the new one.
    """
    if isinstance(node, list):
        return [with_current_targets(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    copy = {name: with_current_targets(value) for name, value in node.items()}
    target = copy.get("_target_")
    if isinstance(target, str) and (path := current_path(target)) != target:
        warn_renamed(f"_target_: {target}", f"_target_: {path}", removed_in="0.3.0", stacklevel=3)
        copy["_target_"] = path
    return copy
