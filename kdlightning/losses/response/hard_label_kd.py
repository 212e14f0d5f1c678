"""Distillation of the teacher's decisions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import full_precision


@full_precision
def hard_label_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hard-label distillation: −(1/B) Σ_i log softmax(zˢ_i)_k with k = argmax_c zᵗ_ic, the teacher's decision.

    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021. There is
    no temperature. The authors' models have a second head, the distillation token's, that learns it; here the one head
    learns both terms. Of equal largest logits the teacher's first counts.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, teacher)
    if student.shape[1] < 2:
        raise ValueError("HardLabelKD needs at least two classes")
    return F.cross_entropy(student, teacher.argmax(-1))


class HardLabelKD(ResponseLoss):
    """Hard-label distillation; see `hard_label_loss`.

    Default weights: task 0.5 and hard_label_kd 0.5, the paper's.
    """

    compares = "classes"
    default_weights = {"task": 0.5, "hard_label_kd": 0.5}

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar."""
        return hard_label_loss(student, teacher)
