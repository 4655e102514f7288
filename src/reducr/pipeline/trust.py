"""What a stored configuration may build: a run folder can come from anyone, and cannot vouch for itself.

The names are compared as text, before anything is imported, because importing a module runs it, and because a dotted
name may walk out of a module that is allowed (``reducr.cli.os.system``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from reducr._internal.moved import current_path
from reducr._internal.text import one_line

_LONGEST = 100


def _below(prefix: str, names: str) -> set[str]:
    return {f"{prefix}.{name}" for name in names.split()}


_TIMM_MODEL = "reducr.models.timm_model"
_LOGGERS = {"reducr.lightning.CSVMetrics"} | _below(
    "lightning.pytorch.loggers", "CSVLogger MLFlowLogger TensorBoardLogger WandbLogger"
)
ALLOWED = (
    _LOGGERS
    | _below("reducr.data.published", "cifar.CIFAR10 cifar.CIFAR100 cinic10.CINIC10 clothing1m.Clothing1M")
    | _below("reducr.data.published", "digits.Digits fashion_mnist.FashionMNIST mnli.MNLI qqp.QQP")
    | _below("reducr.data.published", "waterbirds.Waterbirds")
    | _below("reducr.data.own", "hugging_face.HuggingFace image_folder.ImageFolder table.Table")
    | _below("reducr.data.core.transforms", "Augment Preprocess")
    | _below("reducr.models", "MLP SmallCNN SmallTextClassifier TransformersTextClassifier resnet8 resnet18 resnet50")
    | _below("reducr.models", "small_model timm_model transformers_image_model")
    | _below("torch.optim", "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop")
    | _below("torch.optim", "Rprop SGD")
    | _below("torch.optim.lr_scheduler", "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR")
    | _below("torch.optim.lr_scheduler", "ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR StepLR")
    | _below("torch.nn", "BatchNorm1d BatchNorm2d Conv1d Conv2d Dropout Embedding Flatten GELU GroupNorm Identity")
    | _below("torch.nn", "LayerNorm Linear MaxPool2d AdaptiveAvgPool2d AvgPool2d ReLU SiLU Sequential Tanh Unflatten")
    | {"transformers.Adafactor", "transformers.optimization.Adafactor"}
    | _below("timm.optim", "AdamP Lamb Lars Lion NAdamW RMSpropTF SGDP")
    | _below(
        "lightning.pytorch.callbacks",
        "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor ModelSummary "
        "RichModelSummary RichProgressBar StochasticWeightAveraging TQDMProgressBar Timer",
    )
)
"""The ``_target_``s that run folders may name without ``--trust``."""
_TIMM_OPTIONS = {"_target_", "name", "pretrained", "in_channels", "dropout"}
_REMOTE_CODE = ("trust_remote_code", "auto_map", "allow_all_kernels")
_SCHEME = re.compile(r"(\w[\w+.-]*):/|file:", re.IGNORECASE)
_LOCAL_STORE = re.compile(r"sqlite:///[^?#]*/mlflow\.db")
"""What the configuration of MLflow in this package names."""


class UntrustedError(ValueError):
    """A stored configuration names code that is not on the list of ``reducr``."""


@dataclass(frozen=True)
class Demand:
    """Something in a configuration that needs the user's trust.

    Args:
        place: dotted name of the option.
        what: what it would do.
    """

    place: str
    what: str

    def __str__(self) -> str:
        return f"{one_line(self.place)}: {self.what}"


def demands(config: Any) -> list[Demand]:
    """What a plain configuration, nested dicts and lists, would run beyond the list of ``reducr``.

    Example:
        >>> [str(one) for one in demands({"model": {"_target_": "os.system", "command": "date"}})]
        ['model: os.system(command=date)']
        >>> demands({"model": {"_target_": "reducr.models.MLP", "num_features": None}})
        []
    """
    return list(_demands(config, ""))


def check_trusted(config: Any, *, source: str, command: str) -> None:
    """Raise an error unless a plain configuration builds only what is on the list of ``reducr``.

    Args:
        config: nested dicts and lists.
        source: the file, for the message.
        command: that would run it with the user's trust, for the message.

    Raises:
        UntrustedError: with everything that it would run.
    """
    found = demands(config)
    if found:
        lines = "\n".join(f"  {one}" for one in found)
        raise UntrustedError(
            f"{source} names code that is not part of reducr:\n{lines}\nA run folder may come from anyone, so nothing "
            f"of this was imported or run. If you know this code and the folder, run `{command} --trust`."
        )


def _demands(node: Any, place: str) -> Iterator[Demand]:
    if isinstance(node, list | tuple):
        for number, item in enumerate(node):
            yield from _demands(item, f"{place}[{number}]")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        yield from _demands_of_target(node, place)
    for name, value in node.items():
        inner = f"{place}.{name}" if place else str(name)
        if name in _REMOTE_CODE and value:
            yield Demand(inner, f"{name}={_shown(value)}, code from elsewhere")
        if str(name).endswith("_implementation") and "/" in str(value):
            yield Demand(inner, f"the kernel {_shown(value)}, code from elsewhere")
        yield from _demands(value, inner)


def _demands_of_target(node: Mapping[Any, Any], place: str) -> Iterator[Demand]:
    target = node["_target_"]
    path = current_path(target) if isinstance(target, str) else None
    if path not in ALLOWED:
        yield Demand(place or "the configuration", f"{_shown(target)}({_arguments(node)})")
    elif path == _TIMM_MODEL:
        yield from _demands_of_timm(node, place)
    elif path in _LOGGERS:
        yield from _demands_of_logger(node, place)


def _demands_of_timm(node: Mapping[Any, Any], place: str) -> Iterator[Demand]:
    """Files of weights that timm may read as pickles."""
    further = {name: value for name, value in node.items() if name not in _TIMM_OPTIONS}
    if further:
        yield Demand(place, f"timm.create_model({_arguments(further)})")
    if ":" in str(node.get("name")):
        yield Demand(place, f"timm.create_model({_shown(node['name'])}), with weights from there")


def _demands_of_logger(node: Mapping[Any, Any], place: str) -> Iterator[Demand]:
    """Places of files in any option, and the settings of wandb, which name programs."""
    for name, value in node.items():
        if name == "settings":
            yield Demand(f"{place}.{name}", f"settings={_shown(value)} of a tracker")
        for text in _texts(value):
            if _leaves(text) or _is_other_store(text):
                yield Demand(f"{place}.{name}", f"writes to {_shown(text)}, outside the run folder")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _is_other_store(text: str) -> bool:
    """Whether a text is the address of a store other than a server or the default one of this package."""
    scheme = _SCHEME.match(text)
    is_server = scheme is not None and scheme[1] in ("http", "https")
    return scheme is not None and not is_server and not _LOCAL_STORE.fullmatch(text)


def _leaves(path: str) -> bool:
    """Whether a relative path is none, or may lead out of its folder."""
    return any(kind(path).is_absolute() or ".." in kind(path).parts for kind in (PurePosixPath, PureWindowsPath))


def _arguments(node: Mapping[Any, Any]) -> str:
    hidden = ("_target_", "_convert_", "_recursive_")
    arguments = ", ".join(f"{name}={_shown(value)}" for name, value in node.items() if name not in hidden)
    return arguments if len(arguments) <= _LONGEST else f"{arguments[:_LONGEST]}..."


def _shown(value: Any) -> str:
    """A value on one line, without characters that control a terminal."""
    text = value if isinstance(value, str) and re.fullmatch(r"[\w.]+", value) else repr(value)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
