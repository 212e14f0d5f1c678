"""Flow of the solution procedure: how the maps of consecutive stages go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import RelationLoss, Shape, channel_adapter
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_larger


@full_precision
def fsp_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, layout: Layout = "channels_first"
) -> Tensor:
    """Flow of the solution procedure: Σ_l of the mean over samples and channel pairs of (Gˢ_l − Gᵗ_l)².

    G_l[m, n] = (1/(H·W)) Σ_{h,w} F_l[m, h, w] · F_{l+1}[n, h, w] for all channels m and n of two consecutive maps; of
    two sizes the larger is average-pooled. Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning", CVPR 2017, in the mean form of RepDistiller and the Knowledge-Distillation-Zoo
    (which takes the mean over the pairs of maps, too). The paper sums over channels and pools by the maximum;
    torchdistill does, and adds up norms of columns.

    Args:
        student_maps: two or more maps in order: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with
            `layout="channels_last"`; a vector is a map of one position.
        teacher_maps: as many, each with the student's number of channels; their sizes may differ. No gradient flows
            into them.
        layout: which dimension holds the channels, of all.

    Returns:
        A scalar; float32 or better. It is quadratic in the features, so its scale is that of their fourth power.
    """
    _check(student_maps, teacher_maps, layout)
    ours = [channels_first(maps, layout) for maps in student_maps]
    theirs = [channels_first(maps.detach(), layout) for maps in teacher_maps]
    terms = []
    for own, next_own, other, next_other in zip(ours, ours[1:], theirs, theirs[1:], strict=False):
        own, next_own, positions = _matrices(own, next_own)
        other, next_other, other_positions = _matrices(other, next_other)
        target = torch.bmm(other, next_other.mT)
        if positions != other_positions:
            target = target * (positions / other_positions)
        # Both are G times the student's positions: the factor meets a number and not a matrix.
        terms.append(F.mse_loss(torch.bmm(own, next_own.mT), target) / positions**2)
    return sum(terms[1:], terms[0])


def _matrices(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int]:
    """Two maps of one network as `(B, C, positions)`, and how many positions there are."""
    if first.ndim == 2:
        return first[:, :, None], second[:, :, None], 1
    first, second = pool_larger(first, second)
    return first.flatten(2), second.flatten(2), math.prod(first.shape[2:])


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor], layout: Layout) -> None:
    if len(student) < 2 or len(student) != len(teacher):
        raise ValueError(
            "FSP relates consecutive maps: give two or more of the student and as many of the teacher, "
            f"not {len(student)} and {len(teacher)}"
        )
    for maps in (student, teacher):
        if min(m.ndim for m in maps) < 2 or len({m.ndim for m in maps}) > 1:
            raise ValueError(
                "FSP needs maps of one kind (batch, channels, …) from each network, not "
                + ", ".join(str(tuple(m.shape)) for m in maps)
            )
        if layout == "channels_last" and len({m.shape[1:-1] for m in maps}) > 1:
            raise ValueError("FSP cannot pool tokens: use taps with one number of tokens, or maps")
    channel = -1 if layout == "channels_last" else 1
    for own, other in zip(student, teacher, strict=True):
        if len(own) != len(other) or own.shape[channel] != other.shape[channel]:
            raise ValueError(
                "FSP compares channel by channel: map the student's to the teacher's first (adapter: linear), for "
                f"{own.shape[channel]} and {other.shape[channel]} channels of {len(own)} and {len(other)} samples"
            )


class FSP(RelationLoss):
    """Flow of the solution procedure; see `fsp_loss`. Its pairs are consecutive stages, two or more.

    A student of other widths gets 1×1 convolutions as adapters; the paper and reference code take networks of equal
    widths. Both train the flow first, in a stage of its own without labels (RepDistiller for 30 epochs), and then the
    labels alone; here it is one term beside the others. Default weights: task 1, fsp 1 (the
    Knowledge-Distillation-Zoo's for its first stage).
    """

    joint = True
    spatial = "any"
    compares_samples = False
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "fsp": 1.0}

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """A linear map of the student's channels where the widths differ."""
        return channel_adapter(student, teacher)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Nothing to make, but a single pair is found out."""
        if len(student) < 2:
            raise ValueError("FSP relates consecutive maps: give it two or more pairs of taps")

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of all stages, a scalar."""
        return fsp_loss(student, teacher)
