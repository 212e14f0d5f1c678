"""Where the queries, keys and values of a transformer's attention layers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

PROJECTIONS = ("queries", "keys", "values")
"""Native taps `queries.N`, `keys.N` and `values.N` are `(B, T, width)`, the heads side by side, before any rotation."""

_SEPARATE = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)
_FUSED = ("qkv", "Wqkv")
_HEADS = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a model.

    Attributes:
        paths: the modules that give queries, keys and values; one path three times if they come side by side.
        heads: number of attention heads, or None if it is not told.
    """

    paths: tuple[str, str, str]
    heads: int | None

    @property
    def fused(self) -> bool:
        """Whether one module gives all three."""
        return self.paths[0] == self.paths[1]


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """The self-attention layers in the order in which the model lists them; none where they are not known.

    Encoder–decoders have none here: their layers attend to two texts.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return []
    layers = []
    for path, module in model.named_modules():
        names = _names(module)
        if names is not None:
            heads = next((int(found) for owner in (module, config) if (found := _heads(owner))), None)
            first, second, third = (f"{path}.{name}".lstrip(".") for name in names)
            layers.append(AttentionLayer((first, second, third), heads))
    return layers


def _names(module: nn.Module) -> tuple[str, str, str] | None:
    parts = dict(module.named_children())
    for first, second, third in _SEPARATE:
        if all(isinstance(parts.get(name), nn.Linear) for name in (first, second, third)):
            return first, second, third
    for name in _FUSED:
        layer = parts.get(name)
        if isinstance(layer, nn.Linear) and layer.out_features % 3 == 0:
            return name, name, name
    return None


def _heads(owner: Any) -> Any:
    return next((value for name in _HEADS if isinstance(value := getattr(owner, name, None), int)), None)


def heads_of(model: nn.Module | None, taps: Sequence[str]) -> tuple[int | None, ...]:
    """For each tap the number of heads of the attention layer that it is a projection of, else None."""
    layers = [] if model is None else attention_layers(model)
    by_path = {path: layer.heads for layer in layers for path in layer.paths}

    def heads(tap: str) -> int | None:
        kind, _, number = tap.partition(".")
        if kind in PROJECTIONS and number.lstrip("-").isdigit():
            return layers[int(number)].heads if layers else None
        return by_path.get(tap.partition(":")[0])

    return tuple(heads(tap) for tap in taps)
