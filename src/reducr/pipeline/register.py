"""Configurations without a YAML file: typed options, a method per selector, the published experiments."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from reducr.pipeline.config import IRREDUCIBLE_KINDS, Config, Irreducible, Proxy
from reducr.selectors import SELECTORS

_CONFIGS = Path(__file__).parents[1] / "configs"
_PLAIN = (bool, int, float, str, list, tuple, type(None))


def register() -> None:
    """Store them with Hydra, where YAML files can name them in their defaults lists and override them."""
    store = ConfigStore.instance().store
    store(name="options", node=Config)
    for kind in IRREDUCIBLE_KINDS:
        store(group="irreducible", name=kind, node=Irreducible(kind=kind))
    store(group="proxy", name="default", node=Proxy)
    for name in SELECTORS:
        method = {"selector": name, "train_on": "train", "options": _selector_options(name)}
        store(group="method", name=name, node={name: method})
    files = sorted(path.stem for path in (_CONFIGS / "method").glob("*.yaml"))
    store(group="method", name="all", node={"defaults": list(dict.fromkeys([*SELECTORS, *files]))})
    with (_CONFIGS / "published" / "experiments.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            store(group="experiment", name=row["experiment"], node=_published(row), package="_global_")


def _published(row: dict[str, str]) -> dict[str, Any]:
    """The experiment of a row. Without a selection method it is one of the irreducible stage alone."""
    node: dict[str, Any] = {
        "defaults": [f"/published/{row['body']}", {"override /irreducible": row["irreducible"]}],
        "name": row["experiment"],
    }
    if row["selection_method"]:
        node["selection_method"] = row["selection_method"]
    elif row["irreducible"] != "adjusted":
        node["gradient_weighted_class"] = "all"
    return node


def _selector_options(name: str) -> dict[str, Any]:
    """Keyword-only parameters of a selector that have a plain default, after its sampler."""
    try:
        selector = SELECTORS[name]
    except ValueError:  # A broken package is an error only for a run that uses its selector.
        return {}
    options: dict[str, Any] = {"sampler": selector.default_sampler}
    for parameter in inspect.signature(selector).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and isinstance(parameter.default, _PLAIN):
            options.setdefault(parameter.name, parameter.default)
    return options
