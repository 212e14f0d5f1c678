"""Distillation of labels that are each yes or no."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.numerics import LOWEST, check_positive, full_precision


@full_precision
def multilabel_kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Multi-label distillation: T² · (1/B) Σ_i Σ_l KL(Bernoulli(sigmoid(zᵗ_il/T)) ‖ Bernoulli(sigmoid(zˢ_il/T))).

    The multi-label logits distillation of Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, at T = 1. A
    single label, `(B, 1)`, is the distillation of a binary classifier. Logarithms are those of sigmoids and not of
    probabilities, so that they stay finite for any finite logits; the authors' code clamps probabilities to
    [1e-8, 1 − 1e-8], beyond which its gradient is 0.

    Args:
        student: logits `(B, L)`, one a label.
        teacher: logits `(B, L)`; no gradient flows into them.
        temperature: T > 0; 1 in the paper.

    Returns:
        A scalar, the sum over labels and mean over the batch; float32 or better.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher logits must have one shape (batch, labels): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_positive("temperature", temperature)
    loss: Tensor = _Bernoullis.apply(student, teacher.detach().to(student.dtype), temperature)
    return loss


class _Bernoullis(torch.autograd.Function):
    """The loss, with its gradient T · (1/B) · (sigmoid(zˢ/T) − sigmoid(zᵗ/T)) made in place beside it."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        own, other = ((logits / temperature).clamp_(LOWEST, -LOWEST) for logits in (student, teacher))
        loss = _divergence(own, other) + _divergence(own.neg_(), other.neg_())
        if ctx.needs_input_grad[0]:
            gradient = other.sigmoid_().sub_(own.sigmoid_()).mul_(temperature / len(student))
            ctx.temperature = temperature
            ctx.save_for_backward(student, teacher, gradient)
        return loss.mul_(temperature**2 / len(student))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True the gradient itself must depend on the student
            difference = (student / ctx.temperature).sigmoid() - (teacher / ctx.temperature).sigmoid()
            gradient = difference * (ctx.temperature / len(student))
        return gradient * upstream, None, None


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ p log(p/q) with p and q the sigmoids of the teacher's and the student's logits: one half of the KL."""
    return (F.logsigmoid(teacher) - F.logsigmoid(student)).mul_(teacher.sigmoid()).sum()


class MultiLabelKD(ResponseLoss):
    """Distillation of labels that are each yes or no, one (a binary classifier) or many; see `multilabel_kd_loss`.

    Default weights: task 1 and multi_label_kd 1. The task's cross-entropy is a mean over labels, this term their sum.
    """

    compares = "labels"
    default_weights = {"task": 1.0, "multi_label_kd": 1.0}

    def __init__(self, temperature: float = 1.0) -> None:
        """
        Args:
            temperature: T > 0 of all sigmoids.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, L)`, a scalar."""
        return multilabel_kd_loss(student, teacher, temperature=self.temperature)
