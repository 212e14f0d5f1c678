"""Squared differences of what the networks answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.numerics import full_precision


@full_precision
def logit_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logit regression: the mean over samples and outputs of (zˢ − zᵗ)².

    Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (half the squared distance there).

    Args:
        student: logits, or predicted numbers, `(B, C)` or `(B,)`.
        teacher: the same shape; no gradient flows into it.

    Returns:
        A scalar; float32 or better.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher answers must have one shape: {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return F.mse_loss(student, teacher.detach())


class LogitMSE(ResponseLoss):
    """Mean squared difference of logits, or of the numbers of a regression; see `logit_mse_loss`.

    It is TinyBERT's and DistilBERT's prediction term for regression tasks. Default weights: task 0, logit_mse 1, those
    of Ba & Caruana.
    """

    default_weights = {"task": 0.0, "logit_mse": 1.0}

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of answers `(B, C)`, a scalar."""
        return logit_mse_loss(student, teacher)
