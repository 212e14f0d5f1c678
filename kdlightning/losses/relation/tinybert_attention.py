"""Attention scores of a transformer's layers, before the softmax."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlightning.losses.attention_heads import equal_heads
from kdlightning.losses.base import LossContext, RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.token_mask import token_mask


@full_precision
def tinybert_attention_loss(
    student_scores: Tensor, teacher_scores: Tensor, attention_mask: Tensor | None, *, count_padding: bool = False
) -> Tensor:
    """TinyBERT's attention term of one layer: the mean squared difference of the attention scores.

    Scores are q·k/√d of each head, before the softmax, which the paper found to fit better than probabilities. Jiao et
    al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, equation 7, who do not
    say what becomes of padding.

    Args:
        student_scores: `(B, heads, L, L)`.
        teacher_scores: the same shape; no gradient flows into it.
        attention_mask: `(B, L)`, 1 where there is a token; None if there is no padding.
        count_padding: False takes the mean over entries whose row and column are tokens. True is the released code's:
            columns of padding count as zeros, rows of padding as what they are, and the mean is over all entries, so
            that the value depends on how far a batch is padded.

    Returns:
        A scalar; float32 or better. Without any token 0.
    """
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(
            "attention scores must have one shape (batch, heads, length, length): "
            f"{tuple(student_scores.shape)} and {tuple(teacher_scores.shape)}"
        )
    squares = (student_scores - teacher_scores.detach()).square()
    if attention_mask is None:
        return squares.mean()
    mask = attention_mask.to(squares.dtype)
    columns = mask[:, None, None, :]
    if count_padding:
        return (squares * columns).mean()
    entries = columns * mask[:, None, :, None]
    return (squares * entries).sum() / (squares.shape[1] * entries.sum()).clamp(min=1)


@full_precision
def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """q·k/√d `(B, heads, L, L)` of projections with the channels first, `(B, heads·d, L)`."""
    batch, width, length = queries.shape
    ours, theirs = (tensor.reshape(batch, heads, width // heads, length) for tensor in (queries, keys))
    # Scaled while they are few: queries are L·d numbers a head, scores L·L.
    return ours.transpose(2, 3) / math.sqrt(width // heads) @ theirs


class TinyBERTAttention(RelationLoss):
    """TinyBERT's attention term, summed over the paired layers; see `tinybert_attention_loss`.

    Pairs are `queries.N` and `keys.N`, layer after layer, from which the scores are formed, so that the networks keep
    their fused attention; `LayerKD` makes them. Both networks need equal numbers of heads (`MiniLMRelation` does
    not). Relative positions and rotations that a model adds to its scores are not part of them: of DeBERTa it compares
    the content part, of ModernBERT the scores before rotation.

    The paper's weight is 1.
    """

    joint = True
    spatial = "any"
    padding = "masked"
    compares_samples: ClassVar[bool] = False
    layers = ("queries", "keys")

    def __init__(self, count_padding: bool = False) -> None:
        """
        Args:
            count_padding: divide by all entries, as the released code does.
        """
        super().__init__()
        self.count_padding = count_padding
        self.heads: tuple[int, ...] = ()

    def bind(self, context: LossContext) -> None:
        """Reads the numbers of heads."""
        if len(context.student_taps) % 2:
            raise ValueError("pairs are the queries and the keys of each layer, one after the other")
        taps = "its taps are projections of attention layers such as queries.0 and keys.0"
        self.heads = equal_heads(context.student_heads, context.teacher_heads, taps)[::2]

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The sum over the layers, a scalar; projections `(B, width, L)`."""
        mask = token_mask(batch, student[0].shape[2])
        values = [
            tinybert_attention_loss(
                attention_scores(student[2 * layer], student[2 * layer + 1], heads),
                attention_scores(teacher[2 * layer], teacher[2 * layer + 1], heads),
                mask,
                count_padding=self.count_padding,
            )
            for layer, heads in enumerate(self.heads)
        ]
        return torch.stack(values).sum()
