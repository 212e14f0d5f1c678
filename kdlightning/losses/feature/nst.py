"""Neuron selectivity transfer: the distributions of where single channels respond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.maps import common_maps
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout


@full_precision
def nst_loss(student: Tensor, teacher: Tensor, *, layout: Layout = "channels_first") -> Tensor:
    """Neuron selectivity transfer of one stage: the squared maximum mean discrepancy between two sets of channels.

    Each channel is a vector over the positions, divided by its L2 norm. With the kernel k(a, b) = (a·b)², the value is
    mean k(t, t') + mean k(s, s') − 2·mean k(s, t), means over all pairs of channels and over the batch. Huang & Wang,
    "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, with the polynomial kernel (d = 2,
    c = 0), which the paper found best; weight 50 summed over the stages in RepDistiller and mdistiller.

    Both write the kernel out as `(B, C, C, H·W)`. Here it is a product of matrices, in the smaller of two equal forms:
    the squares of the channels' inner products, or ‖AᵀA/C_A − BᵀB/C_B‖²_F of the `(H·W, H·W)` ones, because
    Σ (a·b)² = ⟨AᵀA, BᵀB⟩.

    Args:
        student: `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`. The formula has no
            meaning for vectors, which have no positions.
        teacher: as many dimensions, its number of channels may differ; no gradient flows into it. Of two sizes the
            larger is average-pooled.
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better. Channels that are 0 everywhere count as vectors of zeros, with zero gradient.
    """
    student, teacher = common_maps("NST", student, teacher, layout)
    ours, theirs = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    own, other, positions = ours.shape[1], theirs.shape[1], ours.shape[2]
    if positions * (own + other) <= own * own + own * other + other * other:
        target = theirs.mT @ theirs
        difference = torch.baddbmm(target, ours.mT, ours, beta=-1 / other, alpha=1 / own)
        return difference.square().sum() / len(ours)
    cross = (ours @ theirs.mT).square().mean() * 2
    return (ours @ ours.mT).square().mean() - cross + (theirs @ theirs.mT).square().mean()


class NST(FeatureLoss):
    """Neuron selectivity transfer; see `nst_loss`. It needs no adapter: the numbers of channels may differ.

    Default weight 50, summed over the last three or four stages, beside cross-entropy 1: that of reference code.
    """

    default_weights = {"nst": 50.0}

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: sets of channels of any size can be compared."""

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one stage, a scalar."""
        return nst_loss(student, teacher)
