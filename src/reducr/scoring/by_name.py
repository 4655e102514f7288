"""A rule by its name, with its options beside those of the selection, and groups counted from the holdout set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reducr._internal.names import unknown_name
from reducr.scoring.holdout_groups import HoldoutGroups
from reducr.selectors import SELECTORS, Selector, make_selector
from reducr.selectors.registry import option_names

CORE_OPTIONS = ("refresh_steps", "holdout_fraction", "short_batches")
"""Options of every loop that ``Downsampler`` takes beside its named ones."""
_SCORING = {
    "scoring_mode": "mode", "mode": "mode", "scoring_dtype": "autocast", "scoring_autocast": "autocast",
    "autocast": "autocast", "scoring_compile": "compile", "compile": "compile", "scoring_resolution": "resolution",
    "resolution": "resolution", "scoring_budget": "budget", "budget": "budget", "scoring_batch_size": "batch_size",
}  # fmt: skip
_ELSEWHERE = {name: f"`scoring=reducr.Scoring({option}=...)`" for name, option in _SCORING.items()} | {
    "holdout_decay": "`holdout=reducr.Holdout(batches, decay=...)`",
    "decay": "`holdout=reducr.Holdout(batches, decay=...)`",
    "examples_per_group": "`holdout=reducr.Holdout(batches, examples_per_group=...)`",
    "companions": "`auxiliary=reducr.Auxiliary(models=[...])`",
    "auxiliary_models": "`auxiliary=reducr.Auxiliary(models=[...])`",
    "proxy": "`auxiliary=reducr.Auxiliary(models=[reducr.AuxiliaryModel(proxy, optimizer, is_proxy=True)])`",
    "extra_batches": "`auxiliary=reducr.Auxiliary(extra_batches=...)`",
    "also_train_on": "`auxiliary=reducr.Auxiliary(extra_batches=...)`",
    "percent_train": "`fraction=...`, in (0, 1]",
    "num_selected": "`fraction=...`, in (0, 1]",
    "num_candidates": "the batch size of the loader",
    "warm_start": "`model.load_state_dict(reference.state_dict())` before the training",
}
"""Options that users look for here -> where they are."""


def split_options(
    owner: str, build: Callable[..., Any], selector: Any, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the selection, and those of a rule that is given by its name.

    Args:
        owner: what the options were given to, for messages.
        build: its keyword-only parameters are options of the selection, and so are ``CORE_OPTIONS``.
        selector: the rule or its name.
        options: all of them.

    Raises:
        ValueError: for an unknown rule or option; names the nearest ones, or where an option is.
    """
    parameters = inspect.signature(build).parameters.values()
    own_names = [*(p.name for p in parameters if p.kind is p.KEYWORD_ONLY), *CORE_OPTIONS]
    rule_names = names_of_rule(selector, options)
    for name in options:
        if name in own_names or name in rule_names:
            continue
        check_not_moved(owner, [name])
        if isinstance(selector, Selector) and name in option_names(selector.name):
            raise ValueError(
                f"{name!r} is an option of the rule, which is already made: pass it to reducr.make_selector("
                f"{selector.name!r}, ...), or pass the name {selector.name!r} as the selector."
            )
        others = [rule for rule in SELECTORS if isinstance(selector, str) and name in option_names(rule)]
        if others:
            raise ValueError(
                f"The rule {selector!r} has no option {name!r}; {', '.join(map(repr, others))} "
                f"ha{'s' if len(others) == 1 else 've'} it. Leave it out, or use another rule."
            )
        raise unknown_name("option", name, [*own_names, *rule_names], of=owner)
    own = {name: value for name, value in options.items() if name in own_names}
    return own, {name: value for name, value in options.items() if name not in own_names}


def names_of_rule(selector: Any, options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options of a rule that is given by its name; none for anything else.

    Raises:
        ValueError: for an unknown rule or sampler.
    """
    if not isinstance(selector, str):
        return []
    if selector not in SELECTORS:
        raise unknown_name("selector", selector, SELECTORS)
    return ["num_groups", *option_names(selector, options.get("sampler"))]


def check_not_moved(owner: str, names: Iterable[str], others: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for the first name of an option that is in another place, which it says.

    Args:
        owner: what the options were given to.
        names: of the options.
        others: further names, and where these options are.
    """
    places = _ELSEWHERE | dict(others or {})
    for name in names:
        if name in places:
            raise ValueError(f"{owner} has no option {name!r}: pass {places[name]}.")


def selector_of(selector: Any, options: Mapping[str, Any], groups: HoldoutGroups | None, *, sync: bool) -> Any:
    """Return the rule: made from its name, with as many groups as the holdout set has.

    Rules without groups are made without them if there is no holdout set, or none can be read from it.

    Args:
        selector: a rule, which is returned as it is, or its name.
        options: of the rule; ``num_groups`` among them is not counted then.
        groups: of the holdout set; None if there is none.
        sync: count over the holdout sets of all ranks.

    Raises:
        ValueError: if the rule has groups, and they cannot be counted.
    """
    if not isinstance(selector, str):
        return selector
    if "num_groups" in options:
        return make_selector(selector, **options)
    has_groups = SELECTORS[selector].has_groups()
    if groups is None:
        if has_groups:
            raise ValueError(
                f"{selector!r} treats each group of examples by itself, and the groups are counted from the holdout "
                f"set. Pass `holdout=`, its batches, or `num_groups=`."
            )
        return make_selector(selector, **options)
    try:
        num_groups = groups.num_groups(sync=sync)
    except ValueError:
        if has_groups:
            raise
        num_groups = 1  # targets that are no classes, and no groups beside them
    return make_selector(selector, num_groups=num_groups, **options)
