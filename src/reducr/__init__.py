"""Robust data downsampling: choose the best part of every large batch so that the worst class does well."""

from reducr.batch import Candidates, Selection
from reducr.selectors import SELECTORS, Selector, make_selector
from reducr.training.loader import SelectiveLoader

__version__ = "0.1.0"
__all__ = ["SELECTORS", "Candidates", "Selection", "SelectiveLoader", "Selector", "make_selector"]
