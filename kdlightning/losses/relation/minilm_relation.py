"""Relations between a text's tokens in the last self-attention layers: MiniLM and MiniLM v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlightning.losses.attention_heads import equal_heads
from kdlightning.losses.base import LossContext, RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.token_relations import relation_divergence
from kdlightning.losses.token_mask import token_mask

Projections = tuple[Tensor, Tensor, Tensor]


@full_precision
def minilm_relation_loss(
    student: Projections, teacher: Projections, attention_mask: Tensor | None, *, relation_heads: int
) -> Tensor:
    """MiniLM v2: KL(Rᵗ‖Rˢ) of the query–query, key–key and value–value relations, summed over the three.

    R = softmax(X·Xᵀ/√d) for each relation head, d channels of X each. The mean is over a text's tokens, relation heads
    and samples. Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", Findings of ACL 2021, equations 6 to 8, with all three relations weighing 1; no training code was
    published. Memory holds one relation of both networks at a time.

    Args:
        student: queries, keys and values, each `(B, L, width)`, the attention heads side by side.
        teacher: the same; its width and number of attention heads may be others. No gradient flows into it.
        attention_mask: `(B, L)`, 1 where there is a token; None if there is no padding. Padding has no part in any
            relation.
        relation_heads: number of heads into which both widths are split anew.

    Returns:
        A scalar; float32 or better.
    """
    for width in (student[0].shape[2], teacher[0].shape[2]):
        if width % relation_heads:
            raise ValueError(f"relation_heads={relation_heads} does not divide the width {width} of the projections")
    mask = None if attention_mask is None else attention_mask.bool()
    values = [
        relation_divergence((ours, ours), (theirs.detach(), theirs.detach()), mask, relation_heads)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(values).sum()


@full_precision
def minilm_loss(student: Projections, teacher: Projections, attention_mask: Tensor | None, *, heads: int) -> Tensor:
    """MiniLM v1: KL(Aᵗ‖Aˢ) of the attention distributions plus KL of the value relations.

    A = softmax(Q·Kᵀ/√d) for each attention head, VR = softmax(V·Vᵀ/√d). The mean is over a text's tokens, heads and
    samples. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", NeurIPS 2020, equations 5 to 8; no training code was published.

    Args:
        student: queries, keys and values, each `(B, L, width)`, the attention heads side by side.
        teacher: the same; its width may be another one, its number of heads may not.
        attention_mask: as in `minilm_relation_loss`.
        heads: number of attention heads of both networks.

    Returns:
        A scalar; float32 or better.
    """
    mask = None if attention_mask is None else attention_mask.bool()
    queries, keys, values = student
    others = [tensor.detach() for tensor in teacher]
    attention = relation_divergence((queries, keys), (others[0], others[1]), mask, heads)
    return attention + relation_divergence((values, values), (others[2], others[2]), mask, heads)


class _SelfAttention(RelationLoss):
    """A loss on queries, keys and values of one layer of each network."""

    joint = True
    spatial = "any"
    padding = "masked"
    compares_samples: ClassVar[bool] = False
    layers = ("queries", "keys", "values")
    layer_map: ClassVar[str] = "final"

    def bind(self, context: LossContext) -> None:
        """Checks the taps."""
        if len(context.student_taps) != 3:
            raise ValueError("its pairs are the queries, the keys and the values of one layer of each network")

    @staticmethod
    def _projections(tensors: Sequence[Tensor]) -> Projections:
        queries, keys, values = (tensor.transpose(1, 2) for tensor in tensors)
        return queries, keys, values


class MiniLMRelation(_SelfAttention):
    """MiniLM v2's relations of one layer of each network; see `minilm_relation_loss`.

    By default `LayerKD` takes the last layer of both. The paper takes the student's last layer and, of a large teacher,
    one above its middle: `LayerKD(layers={-1: 21})` of 24.
    """

    def __init__(self, relation_heads: int = 48) -> None:
        """
        Args:
            relation_heads: the paper's 48 for networks of width 768, 64 for 1,024; it must divide both widths.
        """
        super().__init__()
        if relation_heads < 1:
            raise ValueError(f"relation_heads is {relation_heads}: give at least 1")
        self.relation_heads = relation_heads

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of one layer of each network, a scalar; projections `(B, width, L)`."""
        mask = token_mask(batch, student[0].shape[2])
        ours, theirs = self._projections(student), self._projections(teacher)
        return minilm_relation_loss(ours, theirs, mask, relation_heads=self.relation_heads)


class MiniLM(_SelfAttention):
    """MiniLM v1's attention distributions and value relations of the last layers; see `minilm_loss`.

    The networks may differ in depth and width and need equal numbers of attention heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = 1

    def bind(self, context: LossContext) -> None:
        """Reads the number of heads."""
        super().bind(context)
        taps = "its taps are projections of attention layers such as queries.3, keys.3 and values.3"
        (self.heads,) = equal_heads(context.student_heads[:1], context.teacher_heads[:1], taps)

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of one layer of each network, a scalar; projections `(B, width, L)`."""
        mask = token_mask(batch, student[0].shape[2])
        return minilm_loss(self._projections(student), self._projections(teacher), mask, heads=self.heads)
