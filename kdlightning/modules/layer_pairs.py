"""Which layers of a transformer learn from which of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.modules.knowledge import TapPair
from kdlightning.taps.layers import layer_tap, number_of_layers
from kdlightning.taps.names import Layout

Layers = str | Sequence[int] | Mapping[int, int]
LAYER_MAPS = ("uniform", "last", "skip", "final")


@dataclass(frozen=True)
class LayerPairs:
    """Pairs of taps, found when both networks are there.

    Attributes:
        layers: see `layer_map`.
        kinds: what is paired of each layer, native taps without their number.
        embedding: whether the embeddings are paired too (of hidden states).
        owner: who asks, for messages.
        layout: how tensors are handed over; see `TapPair`.
    """

    layers: Layers
    kinds: Sequence[str]
    embedding: bool
    owner: str
    layout: Layout | None = None

    def resolve(self, student: nn.Module, teacher: nn.Module) -> list[TapPair]:
        """The pairs, layer after layer and kind after kind."""
        numbers = layer_map(self.layers, number_of_layers(student), number_of_layers(teacher), self.owner)
        if self.embedding:
            numbers = [(0, 0), *(pair for pair in numbers if pair != (0, 0))]
        return [
            TapPair(layer_tap(student, kind, ours), layer_tap(teacher, kind, theirs), layout=self.layout)
            for ours, theirs in numbers
            for kind in self.kinds
        ]

    def of_student(self, student: nn.Module) -> list[int]:
        """The student's layers that are paired, from 1, in the pairs' order; without the embedding."""
        count = number_of_layers(student)
        if isinstance(self.layers, Mapping):
            return [_number(layer, count, "student", self.owner) for layer in self.layers]
        if not isinstance(self.layers, str):
            return list(range(1, len(self.layers) + 1))
        return [layer for layer, _ in layer_map(self.layers, count, count, self.owner)]


def layer_map(layers: Layers, student: int, teacher: int, owner: str) -> list[tuple[int, int]]:
    """Pairs of layers, counted from 1.

    Args:
        layers: with M layers in the student and N in the teacher: "uniform" pairs i with the layer nearest to i·N/M
            (TinyBERT), "last" pairs i with i+N−M (its "top" strategy; PKD-Last with the last layer in it), "skip" is
            "uniform" without the last layer (PKD-Skip), "final" pairs the last layers alone. A list has the teacher's
            layer for each of the student's, from its first; a mapping has pairs of one's own. Negative numbers count
            from the end: -1 is the last layer.
        student: M.
        teacher: N.
        owner: who asks, for messages.

    Raises:
        ConfigurationError: no such map or layer.
    """
    if isinstance(layers, str):
        if layers not in LAYER_MAPS:
            raise ConfigurationError(f"{owner}: layers {layers!r}{nearest(layers, LAYER_MAPS)}")
        if layers == "final":
            return [(student, teacher)]
        if layers == "last" and student > teacher:
            raise ConfigurationError(
                f"{owner}: layers=last needs a teacher as deep as the student, and they have {teacher} and {student} "
                "layers: give a mapping"
            )
        pairs = [
            (i, i + teacher - student if layers == "last" else max(1, round(i * teacher / student)))
            for i in range(1, student + 1)
        ]
        if layers == "skip" and student == 1:
            raise ConfigurationError(f"{owner}: layers=skip leaves the last layer out, and the student has only one")
        return pairs[:-1] if layers == "skip" else pairs
    given = dict(layers) if isinstance(layers, Mapping) else dict(enumerate(layers, start=1))
    if not given:
        raise ConfigurationError(f"{owner}: layers is empty; give {', '.join(LAYER_MAPS)} or pairs of layers")
    return [
        (_number(ours, student, "student", owner), _number(theirs, teacher, "teacher", owner))
        for ours, theirs in given.items()
    ]


def _number(layer: int, count: int, whose: str, owner: str) -> int:
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise ConfigurationError(f"{owner}: layers counts from 1, and names {layer!r}: give whole numbers")
    number = layer + count + 1 if layer < 0 else layer
    if not 0 < number <= count:
        raise ConfigurationError(f"{owner}: the {whose} has layers 1 to {count}, and layers names {layer}")
    return number
