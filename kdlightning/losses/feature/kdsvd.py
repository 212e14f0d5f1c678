"""Distillation by singular value decomposition: how the main directions of consecutive stages go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.singular_vectors import right_singular_vectors
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first

BANDWIDTH = 8.0
"""β of the kernel, as in the paper."""

CANDIDATES = 3
"""How many further vectors of the student may stand in for the teacher's, as in reference code."""


@full_precision
def kdsvd_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, k: int = 1, layout: Layout = "channels_first"
) -> Tensor:
    """Distillation by singular value decomposition: (1/B) Σ_l ‖Rˢ_l − Rᵗ_l‖² over consecutive stages l and l + 1.

    A stage's map, as the matrix of its positions by its channels, has singular values σ and right singular vectors v in
    the space of its channels. For each of the teacher's first k vectors the student's most parallel one among its first
    k + 3 is taken, with its sign turned to the teacher's; both are multiplied by the teacher's σ_i/‖σ_1…k‖. The
    relation of two stages is R_l[m, n, i] = exp(−(v_l[m, i] − v_{l+1}[n, i])²/8) for all channels m and n. It changes
    with the signs of the teacher's vectors, which the decomposition leaves open: here their sum is not negative, so
    that the value does not depend on library and device.

    Lee et al., "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018. The form is that
    of RepDistiller, which follows the authors' code but for a factor (the authors have √k/2 and do not divide by B);
    both keep the signs that the library happens to give, and replace what is not finite by 0. mdistiller cuts the maps
    into C·H rows of W columns, so its vectors lie along the width of the image. `right_singular_vectors` says how the
    gradient stays finite here.

    Args:
        student: two or more stages, in order: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with
            `layout="channels_last"`; a vector is a matrix of one row.
        teacher: as many, each with the student's number of channels; their sizes may differ. No gradient flows into
            them.
        k: how many vectors, at most the smallest rank that the shapes allow; 1 in the paper and in reference code.
        layout: which dimension holds the channels, of all.

    Returns:
        A scalar; float32 or better.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    ours, theirs = ([_matrices(maps, layout) for maps in stages] for stages in (student, teacher))
    _check(ours, theirs)
    k = min(k, *(min(stage.shape[1:]) for stage in (*ours, *theirs)))
    pairs = [_directions(own, other.detach(), k) for own, other in zip(ours, theirs, strict=True)]
    terms = [
        F.mse_loss(_relation(own, next_own), _relation(other, next_other), reduction="sum")
        for (own, other), (next_own, next_other) in zip(pairs, pairs[1:], strict=False)
    ]
    return sum(terms[1:], terms[0]) / len(ours[0])


def _matrices(maps: Tensor, layout: Layout) -> Tensor:
    """`(B, positions, channels)`."""
    if maps.ndim < 2:
        raise ValueError(f"KDSVD needs vectors or maps (batch, channels, …), not shape {tuple(maps.shape)}")
    return channels_first(maps, layout).flatten(2).mT if maps.ndim > 2 else maps[:, None]


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if len(student) < 2 or len(student) != len(teacher):
        raise ValueError(
            "KDSVD relates consecutive stages: give two or more of the student and as many of the teacher, "
            f"not {len(student)} and {len(teacher)}"
        )
    for own, other in zip(student, teacher, strict=True):
        if len(own) != len(other) or own.shape[2] != other.shape[2]:
            raise ValueError(
                "each stage of the student needs the teacher's number of channels and samples: "
                f"{own.shape[2]} and {other.shape[2]} channels, {len(own)} and {len(other)} samples"
            )


def _directions(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The weighted singular vectors `(B, C, k)` of one stage, the student's turned to the teacher's."""
    target, strengths = right_singular_vectors(teacher, k)
    target = target * torch.where(target.sum(1, keepdim=True) < 0, -1.0, 1.0)
    weights = F.normalize(strengths, dim=1)[:, None]
    found, _ = right_singular_vectors(student, min(k + CANDIDATES, *student.shape[1:]))
    cosines = found.detach().mT @ target
    best = cosines.abs().argmax(1, keepdim=True)
    signs = torch.where(cosines.gather(1, best) < 0, -1.0, 1.0)
    chosen = found.gather(2, best.expand(-1, found.shape[1], -1))
    return chosen * (signs * weights), target * weights


def _relation(first: Tensor, second: Tensor) -> Tensor:
    """exp(−(a_m − b_n)²/β) − 1, `(B, C, C', k)`: less the 1, small differences keep their digits."""
    root = BANDWIDTH**-0.5
    difference = (first * root)[:, :, None] - (second * root)[:, None]
    return difference.square().neg().expm1()


class KDSVD(FeatureLoss):
    """Distillation by singular value decomposition; see `kdsvd_loss`. Its pairs are consecutive stages, two or more.

    A student of other widths gets 1×1 convolutions as adapters: vectors in different spaces have no angle. Default
    weight 1 beside cross-entropy 1, as in mdistiller.
    """

    default_weights = {"kdsvd": 1.0}
    joint = True
    spatial = "any"

    def __init__(self, k: int = 1) -> None:
        """
        Args:
            k: how many singular vectors of each stage.
        """
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self.k = k

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Nothing to make, but a single pair is found out."""
        if len(student) < 2:
            raise ValueError("KDSVD relates consecutive stages: give it two or more pairs of taps")

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of all stages, a scalar."""
        return kdsvd_loss(student, teacher, k=self.k)
