"""Models of the transformers and timm collections."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reducr._internal.names import unknown_name


class TransformersImageClassifier(nn.Module):
    """An image classifier of transformers that gives its logits alone.

    Args:
        model: called with ``pixel_values``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits of (B, K, H, W) floats."""
        logits: Tensor = self.model(pixel_values=input).logits
        return logits


def transformers_image_model(
    num_classes: int,
    *,
    name: str | None = None,
    pretrained: bool = True,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    dropout: float = 0.0,
) -> TransformersImageClassifier:
    """Any image classifier of transformers; arguments as for ``transformers_model``.

    Args:
        num_classes: C.
        name: see there.
        pretrained: see there.
        architecture: see there.
        config: see there.
        dropout: probability before the last layer; above 0 for MC-dropout rules.

    Raises:
        ValueError: as ``transformers_model``, or if there is no last linear layer to put dropout before.
        FileNotFoundError: as ``transformers_model``.
    """
    model = transformers_model(
        "ImageClassification", num_classes, name=name, pretrained=pretrained, architecture=architecture, config=config
    )
    return TransformersImageClassifier(with_dropout(model, num_classes, dropout))


def timm_model(
    num_classes: int,
    *,
    name: str,
    pretrained: bool = True,
    in_channels: int = 3,
    dropout: float = 0.0,
    **options: Any,
) -> nn.Module:
    """Any model of timm: (B, K, H, W) to (B, num_classes).

    Args:
        num_classes: C.
        name: what ``timm.create_model`` takes.
        pretrained: start from published parameters.
        in_channels: K.
        dropout: probability before the last layer; above 0 for MC-dropout rules.
        options: further ones of ``timm.create_model``.

    Raises:
        ImportError: if timm, or torchvision which it needs, cannot be imported.
        ValueError: if there is no last linear layer to put dropout before.
    """
    timm = _imported("timm", "'reducr[timm]'")
    model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options)
    return with_dropout(model, num_classes, dropout)


def transformers_model(
    task: str,
    num_classes: int,
    *,
    name: str | None,
    pretrained: bool,
    architecture: str | None,
    config: Mapping[str, Any] | None,
) -> Any:
    """A classifier of transformers, in float32 and in train mode.

    With ``pretrained`` the parameters of ``name`` are loaded and only the last layer is new. Without it every parameter
    is random: ``architecture`` with ``config`` is built and ``name`` is not looked at, or, where no architecture is
    given, the sizes of ``name`` are read. One configuration can thus hold both; with ``pretrained``, ``architecture``
    and ``config`` must agree with what is loaded.

    Args:
        task: the end of the class's name, ``ImageClassification`` or ``SequenceClassification``.
        num_classes: C.
        name: on the Hugging Face hub, or a folder that ``save_pretrained`` has written.
        pretrained: start from published parameters.
        architecture: a ``model_type`` of transformers, such as ``resnet`` or ``bert``.
        config: sizes of the architecture, where they are not its defaults.

    Raises:
        ImportError: if transformers cannot be imported.
        ValueError: for arguments that do not go together, an unknown architecture or entry of ``config`` (with the
            nearest ones), or a ``config`` that disagrees with the parameters to load.
        FileNotFoundError: if there is no ``name``; says where it was looked for.
    """
    _check_arguments(name, pretrained=pretrained, architecture=architecture, config=config)
    transformers = _imported("transformers", "'reducr[text]'")
    auto = getattr(transformers, f"AutoModelFor{task}")
    if architecture is not None:
        _check_architecture(task, architecture)
        settings = _settings(transformers.AutoConfig.for_model, architecture, _plain(config or {}), num_classes)
        if not pretrained:
            return auto.from_config(settings).float().train()
    published = _read(transformers.AutoConfig, name)
    _check_architecture(task, published.model_type)
    if pretrained:
        _check_agreement(published, architecture, _plain(config or {}), name)
    published.num_labels = num_classes
    if not pretrained:
        return auto.from_config(published).float().train()
    return _read(auto, name, config=published, ignore_mismatched_sizes=True).float().train()


def with_dropout(model: nn.Module, num_classes: int, dropout: float) -> nn.Module:
    """Put dropout before the last linear layer of ``model``; where ``dropout`` is 0 it stays as it is.

    Args:
        model: changed in place.
        num_classes: C, the outputs of that layer.
        dropout: probability.

    Returns:
        ``model``.

    Raises:
        ValueError: if no linear layer has C outputs.
    """
    if not dropout:
        return model
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
    if not layers:
        raise ValueError(
            f"dropout={dropout} goes before the last linear layer, but {type(model).__name__} has no linear layer with "
            f"{num_classes} outputs. Set dropout=0."
        )
    parent, _, name = layers[-1][0].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Sequential(nn.Dropout(dropout), layers[-1][1]))
    return model


def _check_arguments(
    name: str | None, *, pretrained: bool, architecture: str | None, config: Mapping[str, Any] | None
) -> None:
    if pretrained and name is None:
        raise ValueError(
            "pretrained=true needs name, a model on the Hugging Face hub or a folder that save_pretrained has written. "
            "For random parameters give pretrained=false and architecture."
        )
    if name is None and architecture is None:
        raise ValueError(
            "a model with random parameters needs architecture, such as 'resnet' or 'bert', or the name of a model "
            "whose sizes it shall have; got neither."
        )
    if config and architecture is None:
        raise ValueError(
            f"config={_plain(config)} holds sizes of an architecture, but architecture is not given; {name!r} has "
            "sizes of its own. Give architecture too, or leave config out."
        )


def _check_architecture(task: str, architecture: str) -> None:
    module = importlib.import_module("transformers.models.auto.modeling_auto")
    mapping = {
        "ImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "SequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    }
    known = getattr(module, mapping[task])
    if architecture not in known:
        raise unknown_name(f"architecture for {task}", architecture, known)


def _settings(for_model: Any, architecture: str, config: dict[str, Any], num_classes: int) -> Any:
    """The configuration object of ``architecture`` with ``config``, all of whose entries it must know."""
    if "num_labels" in config:
        raise ValueError(
            f"config.num_labels={config['num_labels']} is the number of classes of the data: leave it out."
        )
    default = for_model(architecture)
    for entry in config:
        if not hasattr(default, entry):
            raise unknown_name("config entry", entry, default.to_dict(), of=architecture)
    return for_model(architecture, **config, num_labels=num_classes)


def _check_agreement(published: Any, architecture: str | None, config: dict[str, Any], name: str | None) -> None:
    """See that what is said of a model agrees with what is loaded."""
    said = {} if architecture is None else {"model_type": architecture, **config}
    for entry, value in said.items():
        loaded = _plain(getattr(published, entry, None))
        if loaded != value:
            raise ValueError(
                f"{'architecture' if entry == 'model_type' else f'config.{entry}'} is {value!r}, but the parameters of "
                f"{name!r} are for {loaded!r}. With pretrained=true both must agree; give {loaded!r}, leave it out, or "
                "set pretrained=false."
            )


def _read(auto: Any, name: str | None, **options: Any) -> Any:
    """``auto.from_pretrained(name)``, with an error that says where it was looked for."""
    try:
        return auto.from_pretrained(name, **options)
    except OSError as error:
        cache = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
        raise FileNotFoundError(
            f"model {name!r} cannot be read: looked for a folder {Path(str(name)).absolute()}, for {name!r} in the "
            f"cache {cache} and on the Hugging Face hub ({str(error).splitlines()[0]}). Give name=FOLDER of a model "
            "that save_pretrained has written, or pretrained=false with architecture for random parameters."
        ) from error


def _imported(module: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        raise ImportError(
            f"this model needs {module}, which cannot be imported ({error}). Install it with: pip install {packages}"
        ) from error


def _plain(value: Any) -> Any:
    """Nested mappings and sequences, also those of configuration libraries, as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value
