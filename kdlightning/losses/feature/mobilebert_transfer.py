"""Hidden states and attention of a transformer's layers, one layer after the other: MobileBERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.losses.attention_heads import equal_heads
from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.feature.tinybert_hidden import tinybert_hidden_loss
from kdlightning.losses.numerics import check_share, full_precision
from kdlightning.losses.relation.token_relations import relation_divergence
from kdlightning.losses.token_mask import token_mask


class MobileBERTTransfer(FeatureLoss):
    """MobileBERT's feature-map and attention transfer, progressively.

    Of each layer the mean squared difference of the hidden states over tokens and channels, plus KL(Aᵗ‖Aˢ) of the
    attention distributions, the mean over tokens and heads. With M paired layers the first `until` of the run has M
    stages of one length, and in stage l only the l-th pair has a loss; after them all pairs have, summed. The callback
    `ProgressiveKD` keeps what lies below still.

    Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices", ACL 2020, equations 2 and 3 and
    section 3.4. Their student and teacher have layers of one width and number, made equal by bottlenecks; here the
    student may be any transformer, whose hidden states a linear map takes to the teacher's width where they differ. The
    attention is formed from queries and keys, so that fused attention stays on; it needs equal numbers of heads. Where
    the paper trains one stage with a run of its own, the optimizer and the learning rate go on here.

    The paper's weights are 1 for both.
    """

    joint = True
    spatial = "any"
    padding = "masked"
    layers = ("hidden_states", "queries", "keys")

    def __init__(self, until: float = 1.0, feature_weight: float = 1.0, attention_weight: float = 1.0) -> None:
        """
        Args:
            until: the share of the run that the stages take, 0 to 1; with 0 all layers learn together from the start
                (the paper's joint knowledge transfer).
            feature_weight: weight of the hidden states.
            attention_weight: weight of the attention.
        """
        super().__init__()
        check_share("until", until)
        self.until = until
        self.feature_weight, self.attention_weight = feature_weight, attention_weight
        self.heads: tuple[int, ...] = ()
        self.maps = nn.ModuleList()

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """None: the loss has its own maps, of hidden states alone."""
        return None

    def bind(self, context: LossContext) -> None:
        """Reads the numbers of heads."""
        taps = "pairs are hidden states, queries and keys of each layer: use ProgressiveKD or LayerKD"
        ours, theirs = context.student_heads[1::3], context.teacher_heads[1::3]
        if len(context.student_taps) % 3 or not ours:
            raise ValueError(taps)
        self.heads = equal_heads(ours, theirs, taps)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Makes the maps between layers of different widths."""
        for ours, theirs in zip(student[::3], teacher[::3], strict=True):
            equal = ours[1] == theirs[1]
            self.maps.append(nn.Identity() if equal else nn.Linear(ours[1], theirs[1], bias=False))

    def stage(self, progress: float, pairs: int) -> int | None:
        """Which of so many pairs, from 0, learns at this moment of the run; None when all do."""
        return None if progress >= self.until else int(progress / self.until * pairs)

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The sum over the pairs that learn now, a scalar; states `(B, D, L)`, or of images `(B, D, H, W)`."""
        stage = self.stage(progress, len(self.heads))
        pairs = range(len(self.heads)) if stage is None else [stage]
        return torch.stack([self._pair(number, student, teacher, batch) for number in pairs]).sum()

    def _pair(self, number: int, student: list[Tensor], teacher: list[Tensor], batch: Any) -> Tensor:
        part = slice(3 * number, 3 * number + 3)
        ours, *own = (tensor.flatten(2).transpose(1, 2) for tensor in student[part])
        theirs, *other = (tensor.detach().flatten(2).transpose(1, 2) for tensor in teacher[part])
        mask = token_mask(batch, ours.shape[1])
        value = self.feature_weight * tinybert_hidden_loss(self.maps[number](ours), theirs, mask)
        return value + self.attention_weight * _attention_divergence(own, other, mask, self.heads[number])


@full_precision
def _attention_divergence(student: list[Tensor], teacher: list[Tensor], mask: Tensor | None, heads: int) -> Tensor:
    """KL of the attention distributions that queries and keys make."""
    return relation_divergence((student[0], student[1]), (teacher[0], teacher[1]), mask, heads)
