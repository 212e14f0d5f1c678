"""Variational information distillation: the student's features predict the teacher's, with a variance per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.layers import NORMS, pointwise
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_larger


@full_precision
def vid_loss(
    predicted_mean: Tensor,
    teacher: Tensor,
    log_scale: Tensor,
    *,
    eps: float = 1e-5,
    layout: Layout = "channels_first",
) -> Tensor:
    """Variational information distillation: the mean over all elements of ½·[(μ − Fᵗ)²/σ²_c + log σ²_c].

    It is the negative log-likelihood, up to a constant, of the teacher's features under Gaussians with the mean μ that
    a network predicts from the student's features, and a variance σ²_c = softplus(log_scale_c) + eps for each channel;
    both learn. Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, as in RepDistiller
    and torchdistill. mdistiller keeps `log_scale` in a plain list: there it is neither trained nor saved.

    Args:
        predicted_mean: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`.
        teacher: the same shape; no gradient flows into it.
        log_scale: `(C,)`, the variances before the softplus.
        eps: the least variance.
        layout: which dimension holds the channels.

    Returns:
        A scalar; float32 or better. It can be negative: below variance 1 the logarithm is.
    """
    if predicted_mean.ndim < 2 or predicted_mean.shape != teacher.shape:
        raise ValueError(
            "predicted means and teacher features must have one shape (batch, channels, …): "
            f"{tuple(predicted_mean.shape)} and {tuple(teacher.shape)}"
        )
    difference = channels_first(predicted_mean - teacher.detach(), layout)
    if log_scale.shape != difference.shape[1:2]:
        raise ValueError(f"log_scale must have shape ({difference.shape[1]},), not {tuple(log_scale.shape)}")
    variance = F.softplus(log_scale) + eps
    squares = difference.square().sum([dim for dim in range(difference.ndim) if dim != 1])
    # Per channel first: the division and the logarithm see C numbers and not all elements.
    return ((squares / variance).sum() / difference.numel() + variance.log().mean()) / 2


class VID(FeatureLoss):
    """Variational information distillation; see `vid_loss`.

    Each pair has a network from the student's width to the teacher's, three 1×1 convolutions without bias (linear
    layers for vectors) with ReLUs between them, and its channels' variances; all are trained and saved. Default weight
    1, summed over the last three or four stages, beside cross-entropy 1: that of reference code.
    """

    padding = "rows"
    default_weights = {"vid": 1.0}

    def __init__(self, init_variance: float = 5.0, eps: float = 1e-5) -> None:
        """
        Args:
            init_variance: the variance of all channels when training starts; 5 in the authors' code.
            eps: the least variance.
        """
        super().__init__()
        check_positive("eps", eps)
        if not init_variance > eps:
            raise ValueError(f"init_variance must be above eps, {eps}, not {init_variance}")
        self.init_variance = init_variance
        self.eps = eps

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the loss's own network maps the channels."""

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The network that predicts the means, and the variances."""
        (own,), (other,) = student, teacher
        self.predictor = nn.Sequential(
            _layer(own, other[1]), nn.ReLU(), _layer(other, other[1]), nn.ReLU(), _layer(other, other[1])
        )
        start = self.init_variance - self.eps
        # The inverse of softplus, in a form that does not overflow.
        self.log_scale = nn.Parameter(torch.full((other[1],), start + math.log(-math.expm1(-start))))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        student, teacher = pool_larger(student, teacher)
        return vid_loss(self.predictor(student), teacher, self.log_scale, eps=self.eps)


def _layer(shape: Shape, width: int) -> nn.Module:
    if len(shape) not in NORMS:
        raise ValueError(f"VID needs vectors or maps (batch, channels, …), not shape {tuple(shape)}")
    return pointwise(len(shape), shape[1], width, bias=False)
