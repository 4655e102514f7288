"""The name of a rule in its state, so that the state of one rule is not loaded into another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from reducr._internal.buffers import FixedDtypeBuffers
from reducr.selectors.checks import check_rule_of_state

_RULE = "_extra_state"
"""Key of the rule's name in a state; torch fixes it."""


class NamedState(FixedDtypeBuffers):
    """Buffers whose ``state_dict`` holds the ``name`` of their rule."""

    name: ClassVar[str]

    def get_extra_state(self) -> Tensor:
        """The name of the rule, as bytes: part of ``state_dict``."""
        return torch.tensor(list(self.name.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise ValueError for the name of another rule."""
        check_rule_of_state(self.name, state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state completely or not at all; also one that was saved without the name of its rule.

        Raises:
            ValueError: for the state of another rule, or one that does not fit or is not finite.
        """
        own_name = {_RULE: self.get_extra_state()}
        if _RULE in state_dict:
            self.set_extra_state(state_dict[_RULE])
        return super().load_state_dict({**state_dict, **own_name}, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}{_RULE}", self.get_extra_state())  # an earlier version saved no name
        super()._load_from_state_dict(state_dict, prefix, *arguments)
