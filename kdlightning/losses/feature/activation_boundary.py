"""Activation boundaries: which of the teacher's neurons respond, and not how strongly."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.regressor import regressor
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.spatial import pool_larger


@full_precision
def ab_loss(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Activation boundaries: Σ max(0, m − σ·Fˢ)² / B, the sum over all elements, with σ = 1 where Fᵗ > 0 and else −1.

    A squared hinge that is zero where the student's neuron lies on the teacher's side of zero by the margin m. Both are
    features *before* the activation: after a ReLU no teacher's neuron is below zero. Heo et al., "Knowledge Transfer
    via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019.

    The authors' code and RepDistiller multiply by 3/1000 and by 2^(i−n+1) for stage i of n (0 the first); mmrazor by
    3/1000, torchdistill by nothing.

    Args:
        student: any shape `(B, …)`, after the connector (see `ActivationBoundary`).
        teacher: the same shape; no gradient flows into it.
        margin: m > 0; 1 in paper and code.

    Returns:
        A scalar; float32 or better. It grows with the number of elements of a sample.
    """
    check_positive("margin", margin)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher features must have one shape: {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    with torch.no_grad():
        turned = teacher.to(student.dtype, copy=True).gt_(0).mul_(-2).add_(1)  # −σ
    return turned.mul(student).add_(margin).relu_().square().sum() / len(student)


class ActivationBoundary(FeatureLoss):
    """Activation boundaries; see `ab_loss`. Name taps before the activation, such as the BatchNorm in front of it.

    The connector is FitNet's regressor without its ReLU, and nothing where the two shapes agree. It normalises over the
    batch, so vector taps need batches of at least two in training. Where no convolution meets the teacher's size, the
    larger side is average-pooled.

    The paper trains this loss first and alone, and then the task (or KD) without it. In one run that is a
    `StepSchedule` from 0 to 1 as the weight of `task` and one from 0.003 to 0 as this term's; the stages weigh
    2^(i−n+1), the last one 1. Without a weight the term counts 0.003 beside task 1, throughout.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "activation_boundary": 3e-3}
    spatial = "any"

    def __init__(self, margin: float = 1.0) -> None:
        """
        Args:
            margin: how far on its side of zero a neuron has to be before it costs nothing.
        """
        super().__init__()
        check_positive("margin", margin)
        self.margin = margin

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """The connector for one pair of shapes (with batch dimension)."""
        return None if student[1:] == teacher[1:] else regressor(student, teacher, relu=False)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return ab_loss(*pool_larger(student, teacher), margin=self.margin)


AB = ActivationBoundary
