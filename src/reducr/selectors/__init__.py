"""Selection rules and samplers by name."""

from reducr.selectors.base import Selector
from reducr.selectors.registry import SELECTORS, make_selector
from reducr.selectors.samplers import SAMPLERS

__all__ = ["SAMPLERS", "SELECTORS", "Selector", "make_selector"]
