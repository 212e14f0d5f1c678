"""Similarity-preserving distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.products import gram, unit_rows
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
    return F.mse_loss(unit_rows(gram(student)), unit_rows(gram(teacher)))


class SP(RelationLoss):
    """Similarity-preserving distillation; see `sp_loss`.

    Depends on which samples share a micro-batch. Reference code uses the last map before pooling, weight 3000.
    """

    spatial = "any"

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return sp_loss(student, teacher)
