"""The selectors by name, and ``make_selector``, which makes one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from reducr._internal.names import check_options, unknown_name
from reducr.selectors.base import Selector
from reducr.selectors.diversified import DivBS
from reducr.selectors.drop import Drop
from reducr.selectors.priority_sampling import PrioritySampling
from reducr.selectors.rcap import Rcap
from reducr.selectors.reducr import FixedWeights, Payoff, Reducr
from reducr.selectors.rs2 import Rs2
from reducr.selectors.samplers import PHASE_OPTIONS, SAMPLERS
from reducr.selectors.simple import ClassBalanced, IrreducibleLoss, RhoLoss, TrainLoss, Uniform
from reducr.selectors.uncertainty import (
    Bald,
    BayesianSelection,
    ConditionalEntropy,
    Entropy,
    GradientNorm,
    LossMinusConditionalEntropy,
    LossPlusConditionalEntropy,
)
from reducr.selectors.weighted import GroupDro, InfoBatch

_GROUP = "reducr.selectors"


class SelectorRegistry(Mapping[str, type[Selector]]):
    """Selector classes by name: the built-in ones, then those that installed packages register.

    A package registers a class under the entry-point group ``reducr.selectors``::

        [project.entry-points."reducr.selectors"]
        margin = "reducr_margin:Margin"

    Names are known without importing any package. A class is imported when its name is looked up, so only that lookup
    fails if its package is broken. ``values()`` and ``items()`` look up every name.

    Args:
        built_in: classes with a ``name`` each.
    """

    def __init__(self, built_in: Iterable[type[Selector]]) -> None:
        self._built_in = {selector.name: selector for selector in built_in}

    def __getitem__(self, name: str) -> type[Selector]:
        """The class of that name.

        Raises:
            KeyError: for an unknown name.
            ValueError: if the name is registered twice, or its class cannot be imported or does not fit.
        """
        entries = self._entries.get(name, [])
        origins = ["reducr"] if name in self._built_in else []
        origins += [f"package {_package(entry)!r} ({entry.value})" for entry in entries]
        if len(origins) > 1:
            raise ValueError(
                f"Selector name {name!r} is registered twice: by {' and by '.join(origins)}. Rename the entry point of "
                f"{_package(entries[-1])!r}, or uninstall that package."
            )
        return _load(entries[0]) if entries else self._built_in[name]

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._built_in, *self._entries)))

    def __len__(self) -> int:
        return len(self._built_in.keys() | self._entries.keys())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        entries: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entry_points(group=_GROUP), key=lambda entry: entry.name):
            entries.setdefault(entry.name, []).append(entry)
        return entries


def _package(entry: EntryPoint) -> str:
    return "unknown" if entry.dist is None else entry.dist.name


def _load(entry: EntryPoint) -> type[Selector]:
    """The class that an entry point names.

    Raises:
        ValueError: if it cannot be imported, is no selector, or has another name.
    """
    origin = f"package {_package(entry)!r} ({entry.value})"
    try:
        selector = entry.load()
    except Exception as error:
        raise ValueError(
            f"Selector {entry.name!r} of {origin} cannot be imported: {type(error).__name__}: {error}. Repair or "
            "uninstall that package."
        ) from error
    if not (isinstance(selector, type) and issubclass(selector, Selector)):
        raise ValueError(  # noqa: TRY004  (a fault of the package)
            f"Selector {entry.name!r} of {origin} must be a subclass of reducr.Selector; got {selector!r}."
        )
    name = getattr(selector, "name", None)
    if name != entry.name:
        raise ValueError(
            f"Selector {entry.name!r} of {origin} calls itself {name!r}. Set `name = {entry.name!r}` in the class, or "
            "rename the entry point."
        )
    return selector


SELECTORS = SelectorRegistry(
    (
        Uniform,
        TrainLoss,
        IrreducibleLoss,
        RhoLoss,
        Reducr,
        FixedWeights,
        Payoff,
        PrioritySampling,
        GradientNorm,
        Entropy,
        ConditionalEntropy,
        Bald,
        LossMinusConditionalEntropy,
        LossPlusConditionalEntropy,
        ClassBalanced,
        Drop,
        DivBS,
        Rs2,
        Rcap,
        GroupDro,
        InfoBatch,
        BayesianSelection,
    )
)
"""Every selector by name, those of installed packages included."""


def make_selector(name: str, *, num_groups: int | None = None, **options: Any) -> Selector:
    """Make a selector by name.

    Args:
        name: a key of ``SELECTORS``.
        num_groups: G >= 1; 1 for no groups, whatever the groups of the batches. None is 1 for rules without groups, and
            refused for the others.
        options: options of that selector, ``sampler``, and the options of that sampler.

    Returns:
        A new selector with fresh state.

    Raises:
        ValueError: for an unknown name or option (with the nearest ones), a value outside its range, missing groups, or
            a selector of another package that cannot be used (see ``SelectorRegistry``).

    Example:
        >>> make_selector("reducr", num_groups=10, step_size=1e-4).group_weights[0]
        tensor(0.1000, dtype=torch.float64)
        >>> make_selector("rho_los", num_groups=10)
        Traceback (most recent call last):
        ValueError: unknown selector 'rho_los'. Did you mean 'rho_loss'...There are: bald, ...
    """
    if not isinstance(name, str) or name not in SELECTORS:
        raise unknown_name("selector", name, SELECTORS)
    build = SELECTORS[name]
    sampler = _sampler_of(build, options.get("sampler"))
    check_options(f"selector {name!r} with sampler {sampler!r}", build, options, also=_sampler_options(sampler))
    if num_groups is None and build.has_groups():
        raise ValueError(
            f"{name!r} treats each group of examples by itself, so it needs `num_groups=`, the number of groups (of "
            "classes, unless the data has groups of its own). A loop counts them from its holdout set if you pass the "
            f"name {name!r} in place of a selector."
        )
    return build(num_groups=1 if num_groups is None else num_groups, **options)


def option_names(name: str, sampler: Any = None) -> list[str]:
    """Return the names of the options of a rule and its sampler, without ``num_groups``.

    Raises:
        ValueError: for an unknown sampler.
    """
    build = SELECTORS[name]
    parameters = inspect.signature(build).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "num_groups"]
    return list(dict.fromkeys([*own, *_sampler_options(_sampler_of(build, sampler))]))


def _sampler_of(build: type[Selector], sampler: Any) -> str:
    if sampler is None:
        return build.default_sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    return sampler


def _sampler_options(sampler: str) -> list[str]:
    return [*inspect.signature(SAMPLERS[sampler]).parameters, *PHASE_OPTIONS, "sampler"]
