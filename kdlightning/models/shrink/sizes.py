"""How large a student is to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kdlightning.errors import ConfigurationError
from kdlightning.models.shrink.encoder import Encoder, blank, inner_name


@dataclass(frozen=True)
class Sizes:
    """Sizes of a smaller encoder.

    Attributes:
        layers: the teacher's layers that are kept.
        hidden: width.
        heads: attention heads.
        inner: feed-forward units.
        words: rows of the embedding.
    """

    layers: tuple[int, ...]
    hidden: int
    heads: int
    inner: int
    words: int

    def options(self, config: Any) -> dict[str, int]:
        """The same as options of a transformers configuration."""
        return {
            "num_hidden_layers": len(self.layers),
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            inner_name(config): self.inner,
            "vocab_size": self.words,
        }

    def parameters(self, encoder: Encoder) -> int:
        """Number of parameters; nothing is allocated for it."""
        return sum(parameter.numel() for parameter in self.blank(encoder).parameters())

    def blank(self, encoder: Encoder) -> torch.nn.Module:
        """Such a network without values."""
        return blank(encoder.model, **self.options(encoder.model.config))

    def __str__(self) -> str:
        words = f"{len(self.layers)} layers ({', '.join(map(str, self.layers))}), width {self.hidden}"
        return f"{words}, {self.heads} heads, feed-forward {self.inner}, {self.words} words"


def sizes_of(
    encoder: Encoder,
    layers: list[int],
    hidden: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
    words: int | None = None,
) -> Sizes:
    """Sizes with what is not given filled in.

    Of a smaller width the heads keep theirs where it divides, else all of them become narrower; feed-forward units go
    in proportion.

    Raises:
        ConfigurationError: a size above the teacher's, or a width that is no multiple of the heads.
    """
    wide = encoder.hidden if hidden is None else hidden
    width = encoder.head_width
    if heads is None:
        heads = encoder.heads if wide % width else wide // width
    units = max(1, round(encoder.inner * wide / encoder.hidden)) if inner is None else inner
    most = {"hidden_size": encoder.hidden, "heads": encoder.heads, "intermediate_size": encoder.inner}
    for (name, limit), value in zip(most.items(), (wide, heads, units), strict=True):
        if not 1 <= value <= limit:
            raise ConfigurationError(
                f"student_from_teacher: {name} must be from 1 to the teacher's {limit}, not {value}"
            )
    if wide % heads:
        raise ConfigurationError(
            f"student_from_teacher: hidden_size {wide} is no multiple of {heads} heads: transformers encoders share "
            f"their width among their heads; with heads as wide as the teacher's give a multiple of {width}"
        )
    return Sizes(tuple(layers), wide, heads, units, encoder.words if words is None else words)
