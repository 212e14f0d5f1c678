"""Which units of the teacher's heads stand where in the student's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from kdlightning.models.shrink.encoder import Encoder
from kdlightning.models.shrink.importance import Weights, head_scores, most, unit_scores_in_heads


@dataclass(frozen=True)
class Slots:
    """For each unit of the student's heads, side by side, the teacher's.

    Attributes:
        scores: of queries and keys.
        values: of values and the output's inputs.
        silent: places whose query is zero: they add nothing to the attention scores as yet.
        scale: factor of queries that makes up for the heads' new width, by whose root scores are divided.
    """

    scores: list[int]
    values: list[int]
    silent: list[int]
    scale: float


def head_slots(encoder: Encoder, weights: Weights, layer: int, heads: int, width: int) -> Slots:
    """Keeps the heads that can write most (`head_scores`), in their order.

    Heads of the same width are kept as they are. Narrower ones keep their most important units. Wider ones, where heads
    go and the width stays (a transformers encoder has always heads × their width = width), also carry the values of
    heads that go, which then follow the kept head's attention; the queries of these places begin at zero, their keys
    are those of the head that goes, so that the kept attention is what it was and the rest can be learned.
    """
    old = encoder.head_width
    kept = most(head_scores(encoder, weights, layer), heads)
    gone = [head * old + unit for head in range(encoder.heads) if head not in kept for unit in range(old)]
    by_score, by_value = unit_scores_in_heads(encoder, weights, layer)
    scores: list[int] = []
    values: list[int] = []
    silent: list[int] = []
    for head in kept:
        first = head * old
        scores += _units(by_score[head], min(width, old), first)
        values += _units(by_value[head], min(width, old), first)
        for _ in range(width - old):
            silent.append(len(scores))
            scores.append(gone[0])
            values.append(gone.pop(0))
    return Slots(scores, values, silent, 1.0 if width == old else math.sqrt(width / old))


def _units(scores: Tensor, count: int, first: int) -> list[int]:
    return [first + unit for unit in most(scores, count)]
