"""Pass attributes on to a wrapped loader, but not to functions that would build a loader without the wrapper."""

from __future__ import annotations

import sys
from typing import Any

_OWN_PLACE = (
    "{name} would build a plain loader from the data set of this {kind}, and nothing would be selected any more. Leave "
    "it out: a {kind} keeps its own place. Save its state (`accelerator.register_for_checkpointing(loader)`, or "
    "`loader.state_dict()`); after the state is loaded, the next pass over the loader is the rest of the saved one."
)
_WRAP_LAST = (
    "{name} would build a plain loader from the data set of this {kind}, and nothing would be selected any more. Call "
    "it with the DataLoader itself, and wrap what it returns: `reducr.SelectiveLoader(prepared, ...)`."
)
_REBUILDERS: dict[str, dict[str | None, str]] = {
    "accelerate.data_loader": {"skip_first_batches": _OWN_PLACE, None: _WRAP_LAST},
    "ray.train": {None: _WRAP_LAST},
    "opacus": {None: _WRAP_LAST},
}
"""Module -> function -> advice. These read the attributes of a loader to build another one. None: every function."""


class Delegate:
    """Has the attributes of ``self._wrapped`` beside its own, which come first. Private names are its own only."""

    _wrapped: Any

    def __getattr__(self, name: str) -> Any:
        # reached only if the usual look-up has failed
        if hasattr(type(self), name):
            return object.__getattribute__(self, name)  # a property that raised AttributeError: raise it again
        if name.startswith("_") or not self._is_complete:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        _refuse_rebuilders(type(self).__name__)
        try:
            return getattr(self._wrapped, name)
        except AttributeError as error:
            raise AttributeError(
                f"Neither {type(self).__name__} nor the {type(self._wrapped).__name__} in it has an attribute {name!r}."
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name) or not self._is_complete
        if is_own or not hasattr(self._wrapped, name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._wrapped, name, value)

    @property
    def _is_complete(self) -> bool:
        """Whether there is something wrapped yet: not before the end of ``__init__``, nor while it is unpickled."""
        return "loader" in vars(self)


def _refuse_rebuilders(kind: str) -> None:
    """Raise ValueError if the function that reads an attribute of the ``kind`` would build another loader from it."""
    frame = sys._getframe(2)
    module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    for prefix, functions in _REBUILDERS.items():
        if module == prefix or module.startswith(f"{prefix}."):
            advice = functions.get(function, functions.get(None))
            if advice is not None:
                raise ValueError(advice.format(name=f"{module.split('.')[0]}.{function}", kind=kind))
