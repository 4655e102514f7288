"""Models from transformers and timm."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reducr._internal.names import unknown_name


class TransformersImageClassifier(nn.Module):
    """Wrap an image classifier of transformers to return only its logits.

    Args:
        model: a model called with ``pixel_values``.
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
    """Build any image classifier of transformers.

    Args:
        num_classes: C.
        name: as for ``transformers_model``.
        pretrained: as for ``transformers_model``.
        architecture: as for ``transformers_model``.
        config: as for ``transformers_model``.
        dropout: probability before the last layer; above 0 for MC-dropout rules.

    Raises:
        ValueError: as ``transformers_model``, or if ``dropout`` is set and the model has no last linear layer.
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
    """Build any model of timm: (B, K, H, W) to (B, num_classes).

    Args:
        num_classes: C.
        name: name of the model for ``timm.create_model``.
        pretrained: start from published parameters.
        in_channels: K.
        dropout: probability before the last layer; above 0 for MC-dropout rules.
        options: further arguments of ``timm.create_model``.

    Raises:
        ImportError: if timm or torchvision, which it needs, cannot be imported.
        ValueError: if ``dropout`` is set and the model has no last linear layer.
    """
    timm = _import("timm", "'reducr[timm]'")
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
    """Build a classifier of transformers, in float32 and in train mode.

    With ``pretrained``, the parameters of ``name`` are loaded and only the last layer is new; ``architecture`` and
    ``config``, if given, must agree with them. Without ``pretrained``, all parameters are random and the sizes come
    from ``architecture`` and ``config`` if given, else from ``name``. One configuration can thus serve both.

    Args:
        task: suffix of the class name, ``ImageClassification`` or ``SequenceClassification``.
        num_classes: C.
        name: a model on the Hugging Face hub, or a folder written by ``save_pretrained``.
        pretrained: start from published parameters.
        architecture: a ``model_type`` of transformers, such as ``resnet`` or ``bert``.
        config: sizes that differ from the defaults of the architecture.

    Raises:
        ImportError: if transformers cannot be imported.
        ValueError: if arguments contradict each other, the architecture or an entry of ``config`` is unknown, or
            ``config`` disagrees with the parameters to load.
        FileNotFoundError: if there is no model ``name``.
    """
    _check_arguments(name, pretrained=pretrained, architecture=architecture, config=config)
    transformers = _import("transformers", "'reducr[text]'")
    auto = getattr(transformers, f"AutoModelFor{task}")
    if architecture is not None:
        _check_architecture(task, architecture)
        settings = _settings(transformers.AutoConfig.for_model, architecture, _plain(config or {}), num_classes)
        if not pretrained:
            return auto.from_config(settings).float().train()
    published = _load(transformers.AutoConfig, name)
    _check_no_kernels(published, name)
    _check_architecture(task, published.model_type)
    if pretrained:
        _check_agreement(published, architecture, _plain(config or {}), name)
    published.num_labels = num_classes
    if not pretrained:
        return auto.from_config(published).float().train()
    return _load(auto, name, config=published, ignore_mismatched_sizes=True).float().train()


def with_dropout(model: nn.Module, num_classes: int, dropout: float) -> nn.Module:
    """Insert dropout before the last linear layer of ``model``, in place, unless ``dropout`` is 0.

    Args:
        model: changed in place.
        num_classes: C, the number of outputs of the last linear layer.
        dropout: probability in [0, 1).

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
            f"{num_classes} outputs. Set `dropout=0`."
        )
    parent, _, name = layers[-1][0].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Sequential(nn.Dropout(dropout), layers[-1][1]))
    return model


def _check_arguments(
    name: str | None, *, pretrained: bool, architecture: str | None, config: Mapping[str, Any] | None
) -> None:
    if pretrained and name is None:
        raise ValueError(
            "pretrained=true needs `name`, a model on the Hugging Face hub or a folder written by save_pretrained. For "
            "random parameters, set `pretrained=false` and `architecture`."
        )
    if name is None and architecture is None:
        raise ValueError(
            "a model with random parameters needs `architecture`, such as 'resnet' or 'bert', or the `name` of a model "
            "with the sizes to use; got neither."
        )
    if config and architecture is None:
        raise ValueError(
            f"config={_plain(config)} needs an architecture; got only {name!r}, which has sizes of its own. Set "
            "`architecture`, or remove `config`."
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
    """The configuration object of ``architecture``, with its entries replaced by ``config``."""
    if "num_labels" in config:
        raise ValueError(
            f"config.num_labels={config['num_labels']} is set from the number of classes of the data. Remove it."
        )
    default = for_model(architecture)
    for entry in config:
        if not hasattr(default, entry):
            raise unknown_name("config entry", entry, default.to_dict(), of=architecture)
    return for_model(architecture, **config, num_labels=num_classes)


def _check_agreement(published: Any, architecture: str | None, config: dict[str, Any], name: str | None) -> None:
    """Raise ValueError unless ``architecture`` and ``config`` agree with the published configuration."""
    expected = {} if architecture is None else {"model_type": architecture, **config}
    for entry, value in expected.items():
        published_value = _plain(getattr(published, entry, None))
        if published_value != value:
            raise ValueError(
                f"{'architecture' if entry == 'model_type' else f'config.{entry}'} is {value!r}, but the parameters of "
                f"{name!r} are for {published_value!r}. Use {published_value!r}, remove the option, or set "
                "`pretrained=false`."
            )


def _load(auto: Any, name: str | None, **options: Any) -> Any:
    """Call ``auto.from_pretrained(name)``; its error names every place that was searched."""
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **options)
    except OSError as error:
        cache = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
        raise FileNotFoundError(
            f"model {name!r} cannot be loaded: searched the folder {Path(str(name)).absolute()}, the cache {cache} and "
            f"the Hugging Face hub ({str(error).splitlines()[0]}). Set `name=FOLDER`, a folder written by "
            "save_pretrained, or `pretrained=false` and `architecture` for random parameters."
        ) from error
    except Exception as error:
        text = str(error)  # with advice to lift the protection
        if isinstance(error, pickle.UnpicklingError) or type(error).__module__.startswith("safetensors"):
            raise ValueError(
                f"The parameters of model {name!r} are damaged, or hold more than tensors. Get its files again, with a "
                "model.safetensors."
            ) from error
        if "trust_remote_code" in text:
            raise ValueError(
                f"Model {name!r} has code of its own, which is not run here. Use a model whose architecture is in "
                "transformers, or build it in a program of yours."
            ) from error
        raise


def _check_no_kernels(config: Any, name: str | None) -> None:
    """Raise ValueError if the configuration of a published model, or a part of it, names a kernel on the hub."""
    for entry, value in vars(config).items():
        if hasattr(value, "to_dict"):
            _check_no_kernels(value, name)
        for choice in value.values() if isinstance(value, Mapping) else [value]:
            if entry.endswith(("_implementation", "_implementation_internal")) and "/" in str(choice):
                raise ValueError(
                    f"The config.json of model {name!r} names the kernel {choice!r}, code from elsewhere, which is not "
                    "run here. Remove the entry."
                )


def _import(module: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        raise ImportError(
            f"this model needs {module}, which cannot be imported ({error}). Run `pip install {packages}`."
        ) from error


def _plain(value: Any) -> Any:
    """Convert nested mappings and sequences, such as those of OmegaConf, to dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value
