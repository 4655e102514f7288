"""Check the options of imbalance and noise, and build objects from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from reducr._internal.names import unknown_name

Built = TypeVar("Built")


def build_kind(
    value: Any, *, name: str, kinds: Mapping[str, Callable[..., Built]], shorthand: tuple[str, str], meaning: str
) -> Built | None:
    """Build what an option describes: None, a number, or a mapping with a ``kind`` and its arguments.

    Args:
        value: None for nothing; a number for the ``shorthand``; or a mapping whose ``kind`` selects one of ``kinds``
            and whose other entries are its arguments.
        name: dotted name of the option, for messages.
        kinds: class or function by kind.
        shorthand: the kind that a number stands for, and the argument that it sets.
        meaning: what a number means, for messages.

    Raises:
        ValueError: if the value is of another type, a kind or option is unknown or missing, or a value is out of range.

    Example:
        >>> kinds, shorthand = {"complex": complex}, ("complex", "real")
        >>> build_kind(2, name="value", kinds=kinds, shorthand=shorthand, meaning="the real part")
        (2+0j)
        >>> build_kind({"kind": "comlpex"}, name="value", kinds=kinds, shorthand=shorthand, meaning="the real part")
        Traceback (most recent call last):
        ValueError: unknown value.kind 'comlpex'. Did you mean 'complex'? There are: complex.
    """
    if value is None:
        return None
    if is_number(value):
        kind, option = shorthand
        value = {"kind": kind, option: value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ValueError(
            f"{name} must be null, a number ({meaning}), or a mapping with a kind ({', '.join(kinds)}) and its "
            f"options; got {value!r}."
        )
    kind, options = value["kind"], {option: value[option] for option in value if option != "kind"}
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_name(f"{name}.kind", kind, kinds)
    return build_from_options(kinds[kind], options, name=name)


def build_from_options(build: Callable[..., Built], options: Mapping[str, Any], *, name: str) -> Built:
    """``build(**options)``, with errors that begin with the option's dotted ``name``.

    In options that are mappings, keys that consist of digits become integers, because YAML and the command line may
    quote class numbers.

    Raises:
        ValueError: if an option is unknown or missing, or ``build`` rejects a value.
    """
    parameters = inspect.signature(build).parameters
    for option in options:
        if option not in parameters:
            raise unknown_name("option", option, parameters, of=name)
    required = [option for option, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [option for option in required if option not in options]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(required)}. Missing: {', '.join(missing)}.")
    try:
        return build(**{option: _with_integer_keys(value) for option, value in options.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_fraction(fraction: float, *, noisy: str) -> None:
    """Raise ValueError unless ``fraction``, the share of ``noisy`` labels or inputs, is in [0, 1]."""
    if not (is_number(fraction) and 0 <= fraction <= 1):
        raise ValueError(f"the fraction of noisy {noisy} must be in [0, 1]; got {fraction!r}.")


def check_classes(option: str, classes: Any, *, expected: str, container: type = Sequence) -> None:
    """Raise ValueError unless ``classes`` is a ``container`` of distinct class numbers (its keys, for a mapping).

    Args:
        option: name of the option, for the message.
        classes: its value.
        expected: what the option must be, for the message.
        container: ``Sequence`` or ``Mapping``.
    """
    is_filled = isinstance(classes, container) and not isinstance(classes, str) and bool(classes)
    if not is_filled or not all(is_class(target) for target in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"{option} must be {expected}; got {classes!r}.")


def is_class(value: object) -> bool:
    """Whether ``value`` is an integer of at least 0, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_classes_exist(option: str, classes: Sequence[int], *, num_classes: int) -> None:
    """Raise ValueError naming the first of ``classes`` that is not below ``num_classes``."""
    for target in classes:
        if target >= num_classes:
            raise ValueError(f"{option} contains class {target}; this data set has the classes 0..{num_classes - 1}.")


def _with_integer_keys(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: value[key] for key in value}
