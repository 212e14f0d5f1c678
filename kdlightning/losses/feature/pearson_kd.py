"""Distillation by Pearson correlation: features without their scale and offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_larger

EPSILON = 1e-6
"""Added to the deviations, as in the authors' code."""


@full_precision
def pearson_kd_loss(student: Tensor, teacher: Tensor, *, layout: Layout = "channels_first") -> Tensor:
    """Distillation by Pearson correlation: ½ · the mean over all elements of (Fˢ − Fᵗ)² after standardisation.

    Each channel loses its mean and is divided by its deviation + 1e-6, both taken over batch and positions; so the
    value is 1 − the channels' mean correlation r, but for 1e-6 and the unbiased deviation. Cao et al., "PKD: General
    Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022, whose code is
    mmrazor's `PKDLoss`; it interpolates a student of another size to the teacher's.

    Args:
        student: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`.
        teacher: as many dimensions and channels; no gradient flows into it. Of two sizes the larger is average-pooled.
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better. It depends on which samples share a micro-batch. Constant channels count as zeros.
    """
    if student.ndim < 2 or student.ndim != teacher.ndim or len(student) != len(teacher):
        raise ValueError(
            "Pearson KD needs features (batch, channels, …) of the same samples and as many dimensions: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = pool_larger(channels_first(student, layout), channels_first(teacher.detach(), layout))
    if student.shape != teacher.shape:
        raise ValueError(
            f"Pearson KD compares channel by channel, and there are {student.shape[1]} and {teacher.shape[1]}: "
            "map the student's to the teacher's first (adapter: linear)"
        )
    if student.numel() == student.shape[1]:
        raise ValueError("Pearson KD correlates over batch and positions: a single vector has no deviation")
    return F.mse_loss(_standardised(student), _standardised(teacher)) / 2


def _standardised(features: Tensor) -> Tensor:
    dims = [dim for dim in range(features.ndim) if dim != 1]
    variance, mean = torch.var_mean(features, dims, keepdim=True)
    # Where the variance is 0, the root's gradient would be NaN.
    return (features - mean) / (variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt() + EPSILON)


class PearsonKD(FeatureLoss):
    """Distillation by Pearson correlation; see `pearson_kd_loss`. mmrazor and the paper call it PKD.

    Depends on which samples share a micro-batch. A student of another width gets a 1×1 convolution as adapter. Made for
    the levels of a detector's pyramid: default weight 6, the authors' for Faster R-CNN; they have 10 for RetinaNet.
    """

    default_weights = {"pearson_kd": 6.0}
    compares_samples = True

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return pearson_kd_loss(student, teacher)
