"""What the tensors of an encoder are: which axis is its width, its heads, its feed-forward units, its words."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdlightning.errors import ConfigurationError

_LAYER = re.compile(r"^(?P<front>.*?(?:encoder|transformer)\.layer)\.(?P<number>\d+)\.(?P<rest>.*)$")
_PROJECTIONS = {
    "query": re.compile(r"attention\.(self\.query|q_lin)\.(weight|bias)"),
    "key": re.compile(r"attention\.(self\.key|k_lin)\.(weight|bias)"),
    "value": re.compile(r"attention\.(self\.value|v_lin)\.(weight|bias)"),
    "output": re.compile(r"attention\.(output\.dense|out_lin)\.weight"),
}
POSSIBLE = "BERT-, RoBERTa- and DistilBERT-like encoders of transformers can be made smaller, and timm's ViTs in depth"


@dataclass(frozen=True)
class Encoder:
    """The sizes of an encoder, and the meaning of each axis of its parameters.

    Attributes:
        model: the network.
        axes: for each parameter of one layer (named with the number 0) and of the rest, a word for each axis: "hidden",
            "inner" (feed-forward), "query", "key", "value", "output" (the heads' side of these four), "words" or "".
        depth, hidden, heads, inner, words: its sizes.
    """

    model: Any
    axes: dict[str, tuple[str, ...]] = field(repr=False)
    depth: int
    hidden: int
    heads: int
    inner: int
    words: int

    @classmethod
    def of(cls, model: nn.Module) -> Encoder:
        """The encoder that a network is.

        Raises:
            ConfigurationError: it is none whose parts are known.
        """
        config: Any = getattr(model, "config", None)
        name = type(model).__name__
        if not type(model).__module__.startswith("transformers.") or not hasattr(config, "num_attention_heads"):
            raise ConfigurationError(f"student_from_teacher: {name} is not known; {POSSIBLE}")
        layers = {int(match["number"]) for key in model.state_dict() if (match := _LAYER.match(key))}
        sizes = (config.hidden_size, config.num_attention_heads, getattr(config, inner_name(config), 0))
        crossed = getattr(config, "add_cross_attention", False) or getattr(config, "is_encoder_decoder", False)
        if crossed or layers != set(range(config.num_hidden_layers)):
            raise ConfigurationError(f"student_from_teacher: the layers of {name} are not known; {POSSIBLE}")
        axes = _axes(model)
        words = {word for axis in axes.values() for word in axis}
        if not {"query", "key", "value", "output", "inner", "hidden", "words"} <= words:
            raise ConfigurationError(f"student_from_teacher: the attention layers of {name} are not known; {POSSIBLE}")
        return cls(model, axes, len(layers), *sizes, config.vocab_size)

    @property
    def head_width(self) -> int:
        """Units of one head."""
        return self.hidden // self.heads


def inner_name(config: Any) -> str:
    """What a configuration calls the width of its feed-forward networks."""
    return "intermediate_size" if hasattr(config, "intermediate_size") else "hidden_dim"


def renamed(name: str, layer: int) -> str:
    """A parameter's name with another layer's number; a name outside the layers as it is."""
    match = _LAYER.match(name)
    return name if match is None else f"{match['front']}.{layer}.{match['rest']}"


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to; None outside the layers."""
    match = _LAYER.match(name)
    return None if match is None else int(match["number"])


def blank(model: Any, **sizes: Any) -> Any:
    """A network of the same class with other sizes, on the meta device: shapes without values."""
    config = copy.deepcopy(model.config)
    for name, value in sizes.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return type(model)(config)


def _axes(model: Any) -> dict[str, tuple[str, ...]]:
    """Which axis is what shows in which one grows when one size of the configuration does: this holds for any head."""
    config = model.config
    inner = inner_name(config)
    sizes = {"hidden": config.hidden_size + config.num_attention_heads, "inner": getattr(config, inner) + 1}
    grown = {
        "hidden": blank(model, num_hidden_layers=1, hidden_size=sizes["hidden"]),
        "inner": blank(model, num_hidden_layers=1, **{inner: sizes["inner"]}),
        "words": blank(model, num_hidden_layers=1, vocab_size=config.vocab_size + 1),
    }
    shapes = {word: other.state_dict() for word, other in grown.items()}
    found = {}
    for name, tensor in blank(model, num_hidden_layers=1).state_dict().items():
        axes = [
            next((word for word, other in shapes.items() if other[name].shape[axis] != size), "")
            for axis, size in enumerate(tensor.shape)
        ]
        match = _LAYER.match(name)
        for word, pattern in _PROJECTIONS.items():
            if match is not None and pattern.fullmatch(match["rest"]):
                axes[1 if word == "output" else 0] = word
        found[name] = tuple(axes)
    return found
