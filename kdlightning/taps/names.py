"""Names of tensors inside a model: what a user writes and which module or native source it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.taps.attention import PROJECTIONS, attention_layers

Layout = Literal["channels_first", "channels_last", "tokens"]

_NATIVE = re.compile(r"^(intermediates|hidden_states|attentions|queries|keys|values)\.(-?\d+)$|^(pre_logits|logits)$")


class TapError(ConfigurationError):
    """A tap that does not exist, did not fire, fired twice or cannot be read here."""


@dataclass(frozen=True)
class Tap:
    """One tensor inside a model.

    Attributes:
        text: what the user wrote, for example `layer3.1.act2:input` or `hidden_states.4`.
        module: dotted path of the hooked module, or None for a native tap.
        side: whether the module's output or its first input is read.
        source: native source: "intermediates", "hidden_states", "attentions", "logits"; None where a module is hooked.
        index: number within the native source.
        third: which third of the module's last dimension is meant, where it gives queries, keys and values at once.
    """

    text: str
    module: str | None
    side: Literal["input", "output"] = "output"
    source: str | None = None
    index: int = 0
    third: int | None = None


@dataclass(frozen=True)
class TapInfo:
    """What a probe learned of a tap.

    Attributes:
        name: the tap as the user wrote it.
        shape: shape for two samples.
        layout: where the channels are; None if it cannot be told (3-D tensors of unknown models).
        prefix_tokens: class and register tokens at the front of a token tensor.
        grid: height and width of the patches of a token tensor, if it shows an image.
        kind: class of the module that was read, or the native source.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout | None = "channels_first"
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    kind: str = ""


def resolve(model: nn.Module, text: str) -> Tap:
    """The tap that `text` names in `model`.

    Raises:
        TapError: no such module or native source; the sentence lists the nearest names.
    """
    path, _, side = text.partition(":")
    if side not in ("", "input", "output"):
        raise TapError(f"tap {text!r}: after the colon write input or output, not {side!r}")
    modules = dict(model.named_modules())
    if path in modules and path:
        return Tap(text, path, "input" if side == "input" else "output")
    native = _NATIVE.match(path)
    if native is None:
        raise TapError(
            f"{type(model).__name__} has no module {path!r}{nearest(path, [*modules, *native_names(model)])}"
        )
    if native[3] == "logits":
        return Tap(text, None, source="logits")
    if native[3] == "pre_logits":
        return Tap(text, classifier_path(model), "input")
    if native[1] in PROJECTIONS:
        return _projection(model, text, native[1], int(native[2]))
    if native[1] not in {name.split(".")[0] for name in native_names(model)}:
        wanted = "a timm model with forward_intermediates" if native[1] == "intermediates" else "a transformers model"
        raise TapError(f"tap {text!r} needs {wanted}, and {type(model).__name__} is none: name a module path instead")
    return Tap(text, None, source=native[1], index=int(native[2]))


def _projection(model: nn.Module, text: str, kind: str, index: int) -> Tap:
    layers = attention_layers(model)
    if not layers:
        raise TapError(
            f"tap {text!r}: {type(model).__name__} has no self-attention layers of a known kind: name the module that "
            "projects them"
        )
    if not -len(layers) <= index < len(layers):
        raise TapError(f"tap {text!r}: {type(model).__name__} has {kind}.0 to {kind}.{len(layers) - 1}")
    layer, number = layers[index], PROJECTIONS.index(kind)
    return Tap(text, layer.paths[number], third=number if layer.fused else None)


def native_names(model: nn.Module) -> list[str]:
    """The native taps that a model offers, without its modules."""
    names = ["logits"]
    if classifier_name(model) is not None:
        names.append("pre_logits")
    if hasattr(model, "forward_intermediates"):
        count = len(getattr(model, "feature_info", None) or getattr(model, "blocks", ()) or ())
        names += [f"intermediates.{i}" for i in range(count or 1)]
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if layers is not None:
        names += [f"hidden_states.{i}" for i in range(layers + 1)] + [f"attentions.{i}" for i in range(layers)]
    return names + [f"{kind}.{i}" for kind in PROJECTIONS for i in range(len(attention_layers(model)))]


def classifier_name(model: nn.Module) -> str | None:
    """Path of the last linear layer of a classifier, or None if it cannot be told."""
    modules = {module: name for name, module in model.named_modules()}
    heads = classifiers(model)
    if heads:
        return modules.get(heads[0]) if len(heads) == 1 else None
    for name in ("classifier", "fc", "head", "score", "lm_head"):
        if isinstance(getattr(model, name, None), nn.Linear):
            return name
    words = getattr(getattr(model, "config", None), "vocab_size", None)
    head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    # A masked language model has its head deeper inside.
    return modules.get(head) if isinstance(head, nn.Linear) and head.out_features == words else None


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The classifiers that a model says it has; several if it adds up their logits.

    A distilled model has a second one for its teacher's labels, beside the first.
    """
    head: object = cast(Any, model).get_classifier() if hasattr(model, "get_classifier") else None
    if isinstance(head, (tuple, list)):
        head = head[0]
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    return [part for part in heads if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]


def classifier_path(model: nn.Module) -> str:
    """Like `classifier_name`, but refuses a model without one."""
    name = classifier_name(model)
    if name is None:
        paths = [path for path, module in model.named_modules() if module in classifiers(model)]
        what = f"has {len(paths)} classifier layers" if paths else "has no known classifier layer"
        raise TapError(
            f"tap 'pre_logits': {type(model).__name__} {what}; write its path, for example "
            f"{paths[-1] if paths else 'fc'}:input"
        )
    return name
