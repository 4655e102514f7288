"""The configuration of a run folder: read as text, checked against the list of ``reducr``, and moved to other data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from reducr._internal.reading import DamagedFileError, reading
from reducr.pipeline.config import as_literals, checked_config
from reducr.pipeline.trust import check_trusted, demands

_PATHS_OF_DATA = ("train_file", "holdout_file", "test_file", "image_dir", "tokenizer")
_REQUIRED = ("compare", "seeds", "selection_method", "seed", "datamodule", "methods")
_EXPECTED = "the configuration of a run"


def load_config(folder: Path, *, command: str, is_trusted: bool) -> DictConfig:
    """The configuration of a run folder, as ``checked_config``.

    Nothing in it is evaluated: the run has resolved it, so ``${...}`` is text.

    Args:
        folder: the run folder.
        command: that the user runs, such as ``reducr resume RUN``, for the message.
        is_trusted: whether the user trusts what it names beyond the list of ``reducr``; this is printed.

    Raises:
        FileNotFoundError: if there is no ``config.yaml``.
        UntrustedError: if it names anything beyond that list and is not trusted.
        ValueError: if it is not the configuration of a run.
    """
    path = folder / "config.yaml"
    plain = read_plain(path)
    if is_trusted:
        for demand in demands(plain):
            sys.stderr.write(f"reducr: --trust: runs {demand}\n")
    else:
        check_trusted(plain, source=str(path), command=command)
    missing = [name for name in _REQUIRED if name not in plain]
    if missing:
        raise DamagedFileError(f"{path} is not {_EXPECTED}: it lacks {', '.join(missing)}. Restore a copy of it.")
    config = OmegaConf.create(as_literals(plain))
    assert isinstance(config, DictConfig)
    try:
        return checked_config(config)
    except ValueError as error:
        raise ValueError(f"In {path}: {error}") from error


def read_plain(path: Path) -> dict[str, Any]:
    """The nested dicts and lists in a YAML file, without aliases, which may stand for any number of copies.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFileError: if it is not YAML, holds aliases, or no mapping.
    """
    with reading(path, _EXPECTED):
        text = path.read_text(encoding="utf-8")
        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                raise DamagedFileError(f"{path} is not {_EXPECTED}: it holds aliases (*NAME), which no run writes.")
            plain = yaml.load(text, Loader=get_yaml_loader())
            OmegaConf.create(as_literals(plain))  # raises for types that no configuration has
        except yaml.YAMLError as error:
            place = getattr(error, "problem_mark", None)
            line = "" if place is None else f" (line {place.line + 1})"
            raise DamagedFileError(f"{path} is not valid YAML{line}. Restore a copy of it.") from error
    if not isinstance(plain, dict):
        raise DamagedFileError(f"{path} is not {_EXPECTED}. Restore a copy of it.")
    return plain


def with_data_in(config: DictConfig, data_dir: Path) -> None:
    """Read the data from ``data_dir`` in place of the folder in the configuration, changed in place.

    ``datamodule.data_dir``, or ``path``, becomes ``data_dir``. Other absolute paths that do not exist are looked up
    below it, by as many of their last parts as lead to a file or folder.

    Raises:
        FileNotFoundError: if ``data_dir`` is not a folder.
        ValueError: if the data module reads no folder.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"`--data-dir {data_dir}` is not a folder.")
    node = config.datamodule
    name = next((name for name in ("data_dir", "path") if name in node), None)
    if name is None:
        raise ValueError(f"`--data-dir {data_dir}` has no effect: {node._target_} reads no folder. Leave it out.")
    node[name] = as_literals(str(data_dir))
    for option in _PATHS_OF_DATA:
        if option not in node or node[option] is None:
            continue
        value = OmegaConf.to_container(node, resolve=True)[option]  # type: ignore[index,call-overload]
        node[option] = as_literals(
            [_moved(one, data_dir) for one in value] if isinstance(value, list) else _moved(value, data_dir)
        )


def _moved(value: Any, data_dir: Path) -> Any:
    path = Path(str(value))
    if not path.is_absolute() or path.exists():
        return value
    parts = path.parts[1:]
    places = (data_dir.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((str(place) for place in places if place.exists()), value)
