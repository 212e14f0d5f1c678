"""Models by name from timm and transformers, and models that begin with the weights of an earlier run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.weights import load_weights


def timm_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    checkpoint: str | None = None,
    key_map: dict[str, str | None] | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A timm model.

    Args:
        name: a name of `timm.list_models()`, or `local-dir:FOLDER` as `kdlightning export --format timm` writes it.
        num_classes: number of classes; None keeps the model's own.
        in_chans: channels of the input.
        pretrained: load timm's weights (from a hub, or from the folder).
        checkpoint: a local file of weights instead.
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.
        options: further options of `timm.create_model`, for example `{img_size: 32}`.
    """
    import timm

    base = name.split(".")[0]
    if ":" not in name and not timm.is_model(base):
        raise ConfigurationError(f"timm has no model {name!r}{nearest(base, timm.list_models())}")
    given: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    model = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **given, **(options or {}))
    return model if checkpoint is None else load_weights(model, checkpoint, key_map)


def transformers_model(
    name: str | None = None,
    architecture: str = "AutoModelForSequenceClassification",
    model_type: str | None = None,
    config: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    key_map: dict[str, str | None] | None = None,
    peft: dict[str, Any] | None = None,
) -> nn.Module:
    """A transformers model, from a name or folder, or built from a configuration with random weights.

    Args:
        name: a hub name or a local folder; its weights are loaded.
        architecture: the Auto class or model class, for example `AutoModelForCausalLM`.
        model_type: with `config` instead of `name`: the configuration's type, for example `bert`.
        config: options of the configuration, for example `{hidden_size: 128}`; they override those of `name`.
        checkpoint: a local file of weights.
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.
        peft: options of `peft.LoraConfig`, for example `{r: 8, target_modules: [q_proj, v_proj]}`; only the adapters
            are trained then. Checkpoints hold adapters and the frozen rest, and `kdlightning export` writes the plain
            model that both make together.
    """
    import transformers

    factory = getattr(transformers, architecture, None)
    if factory is None:
        known = [entry for entry in dir(transformers) if entry.startswith("AutoModel")]
        raise ConfigurationError(f"transformers has no {architecture!r}{nearest(architecture, known)}")
    if (name is None) == (model_type is None):
        raise ConfigurationError("transformers_model: give either name or model_type (with config)")
    if name is not None:
        if ("/" in name or name.startswith(".")) and name.count("/") != 1 and not Path(name).is_dir():
            raise ConfigurationError(f"transformers_model: no folder {name}")
        model = factory.from_pretrained(name, **(config or {}))
    else:
        if model_type not in transformers.CONFIG_MAPPING:
            raise ConfigurationError(
                f"transformers has no model_type {model_type!r}{nearest(str(model_type), transformers.CONFIG_MAPPING)}"
            )
        _check_options(transformers.AutoConfig.for_model(str(model_type)), config or {})
        settings = transformers.AutoConfig.for_model(str(model_type), **(config or {}))
        model = factory.from_config(settings) if architecture.startswith("Auto") else factory(settings)
    # from_pretrained answers in evaluation mode; Lightning trains modules in the mode they are given.
    model.train()
    if checkpoint is not None:
        load_weights(model, checkpoint, key_map)
    return model if peft is None else _with_lora(model, peft)


def started_from(model: nn.Module, checkpoint: str, key_map: dict[str, str | None] | None = None) -> nn.Module:
    """A network with the weights of an earlier run, for methods of several stages.

    Exports, and `load_student`, see the network alone and need the file no more.

    Args:
        model: the network, built as the earlier run built it.
        checkpoint: a local file of weights for it; of a run's checkpoint the student's are taken.
        key_map: prefixes of key names in that file, old to new; null leaves such keys out.
    """
    return load_weights(model, checkpoint, key_map)


def _check_options(defaults: Any, given: dict[str, Any]) -> None:
    """transformers keeps options that its configuration has not, and builds the model without them."""
    known = [name for name in dir(defaults) if not name.startswith("_")]
    # An encoder–decoder reads this one, and has no default for it.
    known += ["decoder_start_token_id"] if defaults.is_encoder_decoder else []
    for name in given:
        if name not in known and name not in ("attn_implementation", "dtype", "torch_dtype"):
            raise ConfigurationError(f"{type(defaults).__name__} has no option {name!r}{nearest(name, known)}")


def _with_lora(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    from kdlightning.errors import MissingExtraError

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("peft", "peft", "transformers_model(peft=…)") from error
    known = inspect.signature(LoraConfig).parameters
    for name in options:
        if name not in known:
            raise ConfigurationError(f"peft: LoraConfig has no option {name!r}{nearest(name, known)}")
    try:
        return get_peft_model(model, LoraConfig(**options))
    except ValueError as error:  # for example modules that the model has not
        raise ConfigurationError(f"peft: {' '.join(str(error).split())}") from error
