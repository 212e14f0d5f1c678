"""The layers of transformers, counted alike: 0 is the embedding, 1 the first layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdlightning.taps.attention import PROJECTIONS, attention_layers
from kdlightning.taps.names import TapError


def number_of_layers(model: nn.Module) -> int:
    """How many layers a transformer has.

    Raises:
        TapError: it is not told.
    """
    blocks: Any = getattr(model, "blocks", None)
    if hasattr(model, "forward_intermediates") and isinstance(blocks, nn.Sequential | nn.ModuleList):
        return len(blocks)
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if isinstance(count, int):
        return count
    raise TapError(
        f"{type(model).__name__} does not tell its layers, so LayerKD cannot pair them: name pairs of taps with "
        "FeatureKD or RelationKD"
    )


def layer_tap(model: nn.Module, kind: str, layer: int) -> str:
    """The tap of one kind at a layer.

    Args:
        model: a transformer of timm or transformers.
        kind: "hidden_states", or "queries", "keys", "values".
        layer: from 1; 0 is the embedding, of hidden states alone.
    """
    if kind in PROJECTIONS:
        if not attention_layers(model):
            raise TapError(f"{type(model).__name__} has no self-attention layers of a known kind: LayerKD needs them")
        return f"{kind}.{layer - 1}"
    if hasattr(model, "forward_intermediates"):
        # All tokens; the native source would run no head behind the deepest one.
        return "blocks.0:input" if layer == 0 else f"blocks.{layer - 1}"
    return f"{kind}.{layer}"


def parameters_below(model: nn.Module, layer: int) -> list[nn.Parameter]:
    """The parameters that a transformer's model registers before those of a layer: embeddings and lower layers.

    Args:
        model: a transformer of timm or transformers.
        layer: from 1.
    """
    path = attention_layers(model)[layer - 1].paths[0].split(".")
    # The layer is the innermost numbered module around its attention: encoder.layer.3, blocks.3.
    depth = max(place for place, part in enumerate(path) if part.isdigit())
    prefix = ".".join(path[: depth + 1]) + "."
    names = [name for name, _ in model.named_parameters()]
    first = next(number for number, name in enumerate(names) if name.startswith(prefix))
    return [parameter for _, parameter in model.named_parameters()][:first]
