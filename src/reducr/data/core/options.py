"""What a YAML says of imbalance or noise, checked and made into what does it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from reducr._internal.names import unknown_name

Made = TypeVar("Made")


def make_of_kind(value: Any, *, name: str, kinds: Mapping[str, Callable[..., Made]], number: str) -> Made:
    """What a mapping describes: ``kind`` says which of ``kinds`` is called, all other entries are its arguments.

    Args:
        value: the mapping.
        name: dotted name of the option, for messages.
        kinds: what can be made, by kind.
        number: what a number in place of the mapping would have meant, for messages.

    Raises:
        ValueError: for anything but a mapping, an unknown kind or option, a missing option, or a value out of range.

    Example:
        >>> make_of_kind({"kind": "comlpex", "real": 1}, name="value", kinds={"complex": complex}, number="real")
        Traceback (most recent call last):
        ValueError: unknown value.kind 'comlpex'. Did you mean 'complex'? There are: complex.
    """
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ValueError(
            f"{name} must be null, a number ({number}) or a mapping with a kind ({', '.join(kinds)}) and its options; "
            f"got {value!r}."
        )
    kind, options = value["kind"], {option: value[option] for option in value if option != "kind"}
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_name(f"{name}.kind", kind, kinds)
    return make_from_options(kinds[kind], options, name=name)


def make_from_options(build: Callable[..., Made], options: Mapping[str, Any], *, name: str) -> Made:
    """``build(**options)``, its faults told by the option's dotted ``name``.

    Classes may be keys of a mapping, which YAML and the command line quote at times: keys that are digits become whole
    numbers.

    Raises:
        ValueError: for an unknown or missing option, or a value that ``build`` refuses.
    """
    parameters = inspect.signature(build).parameters
    for option in options:
        if option not in parameters:
            raise unknown_name("option", option, parameters, of=name)
    needed = [option for option, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [option for option in needed if option not in options]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(needed)}; got no {' and no '.join(missing)}.")
    try:
        return build(**{option: _with_class_keys(value) for option, value in options.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a whole or floating number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_fraction(fraction: float, *, noisy: str) -> None:
    """Raise ValueError unless ``fraction``, of the labels or inputs that are ``noisy``, is in [0, 1]."""
    if not (is_number(fraction) and 0 <= fraction <= 1):
        raise ValueError(f"the fraction of noisy {noisy} must be in [0, 1]; got {fraction!r}.")


def check_classes(option: str, classes: Any, *, expected: str, container: type = Sequence) -> None:
    """Raise ValueError, with what was ``expected``, unless ``classes`` holds (as keys) different numbers from 0 on."""
    is_filled = isinstance(classes, container) and not isinstance(classes, str) and bool(classes)
    if not is_filled or not all(is_class(target) for target in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"{option} must be {expected}; got {classes!r}.")


def is_class(value: object) -> bool:
    """Whether ``value`` is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_classes_exist(option: str, classes: Sequence[int], *, num_classes: int) -> None:
    """Raise ValueError naming the first of ``classes`` that is not below ``num_classes``."""
    for target in classes:
        if target >= num_classes:
            raise ValueError(f"{option} names class {target}; the classes of this data set are 0..{num_classes - 1}.")


def _with_class_keys(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: value[key] for key in value}
