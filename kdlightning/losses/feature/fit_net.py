"""Hints: the student regresses the teacher's features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.regressor import regressor
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import pool_larger


@full_precision
def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hint loss: the mean over all elements of (Fˢ − Fᵗ)².

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (who write half the squared distance). The student's
    features are those after the regressor; `FitNet` owns one.

    Args:
        student: `(B, C)`, `(B, C, L)`, `(B, C, H, W)` or tokens `(B, N, D)`.
        teacher: the same shape; no gradient flows into it.

    Returns:
        A scalar; float32 or better.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher features must have one shape: {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return F.mse_loss(student, teacher.detach())


class FitNet(FeatureLoss):
    """Hints: mean squared error after a regressor that maps the student's features onto the teacher's.

    The regressor is the adapter that `FeatureKD` builds: a convolution chosen by the sizes, BatchNorm, ReLU (see
    `regressor`); for vectors a linear layer instead. Where no convolution meets the teacher's size, the larger side is
    average-pooled. The regressor normalises over the batch, so vector taps need batches of at least two in training.

    Reference code (RepDistiller, mdistiller) uses one stage, weight 100 beside cross-entropy 1, trained jointly; the
    paper trains the hint first, in a stage of its own.
    """

    spatial = "any"
    padding = "rows"

    def __init__(self, relu: bool = True) -> None:
        """
        Args:
            relu: end the regressor with a ReLU. Leave it out (`False`) where the teacher's features have negative
                values: before an activation, or of a transformer.
        """
        super().__init__()
        self.relu = relu

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """The regressor for one pair of shapes (with batch dimension)."""
        return regressor(student, teacher, relu=self.relu)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of regressed student features and teacher features, a scalar."""
        return fitnet_loss(*pool_larger(student, teacher))
