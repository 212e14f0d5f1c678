"""Similarity-preserving distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdlightning.losses.base import RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.products import inner_products, unit_rows, unit_rows_gradient
from kdlightning.losses.relation.samples import flat_samples


@full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ‖Gˢ − Gᵗ‖²_F / B².

    G = F Fᵀ of the flattened features `(B, D)`, each row divided by its L2 norm. Tung & Mori, "Similarity-Preserving
    Knowledge Distillation", ICCV 2019. RepDistiller and mdistiller agree; torchdistill's `SPKDLoss` divides the rows
    by their L1 norm.

    Args:
        student: `(B, …)`; reference code takes the last stage's map before pooling.
        teacher: `(B, …)`, its width and sizes may differ; no gradient flows into it.

    Returns:
        A scalar; float32 or better. A batch of one sample gives 0.
    """
    student, teacher = flat_samples(student, teacher)
    loss: Tensor = _Similarity.apply(student, teacher)
    return loss


class _Similarity(torch.autograd.Function):
    """The loss of samples `(B, D)`, whose gradient needs one product with the features."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        own, *sizes = unit_rows(inner_products(student))
        difference = own - unit_rows(inner_products(teacher))[0]
        ctx.save_for_backward(student, difference, own, *sizes)
        return difference.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        student, difference, *state = ctx.saved_tensors
        gradient = unit_rows_gradient(difference * (upstream * (2 / difference.numel())), *state)
        return (gradient + gradient.mT) @ student, None


class SP(RelationLoss):
    """Similarity-preserving distillation; see `sp_loss`.

    Depends on which samples share a micro-batch. Reference code uses the last map before pooling, weight 3000.
    """

    spatial = "any"

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return sp_loss(student, teacher)
