"""Keep Hydra from the working directory, which may be read-only and have any name."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError


class _Unsaved(OmegaConf):
    @staticmethod
    def save(*_: Any, **__: Any) -> None:
        pass


def is_plain(folder: str) -> bool:
    """Whether Hydra can hold this name in a configuration. It reads ``${`` as the start of an interpolation."""
    try:
        OmegaConf.create({"cwd": folder})
    except GrammarParseError:
        return False
    return True


def keep_hydra_from_writing() -> None:
    """Make sweeps leave no ``multirun.yaml`` in the working directory, which may be read-only.

    Hydra has no option for it. Every run keeps its configuration in its run folder.
    """
    # Hydra loads its plugins itself, so importing the module gives another copy of it.
    sweeper: Any = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]
    sweeper.sweep.__globals__["OmegaConf"] = _Unsaved
