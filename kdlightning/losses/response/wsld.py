"""Weighted soft labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, full_precision, log_probabilities
from kdlightning.losses.response.labels import check_hard_or_soft_labels
from kdlightning.losses.response.softened import softened_cross_entropy


@full_precision
def wsld_loss(student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Weighted soft labels: T² · (1/B) Σ_i w_i · H(softmax(zᵗ_i/T), softmax(zˢ_i/T)).

    w_i = 1 − exp(−CE(zˢ_i, y_i) / CE(zᵗ_i, y_i)), both cross-entropies with the label at temperature 1 and without
    gradient: samples that the student already knows better than the teacher count less. H is the cross-entropy, so
    equal logits leave a value above 0. Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
    Tradeoff Perspective", ICLR 2021. As in the authors' code, 1e-7 is added to the teacher's cross-entropy. mmrazor
    and cls_KD agree; cls_KD's options default to T = 4.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        target: hard labels `(B,)`, int64, or soft ones `(B, C)` (mixup), whose cross-entropy is that of the task.
        temperature: T > 0; 2 in the paper on ImageNet.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, teacher)
    check_positive("temperature", temperature)
    check_hard_or_soft_labels("WSLD", student, target)
    if student.shape[1] < 2:
        raise ValueError("WSLD needs at least two classes")
    with torch.no_grad():
        ratio = _cross_entropies(student, target) / (_cross_entropies(teacher, target) + 1e-7)
        weight = -torch.expm1(-ratio)
    return softened_cross_entropy(student, teacher, temperature, weight)


def _cross_entropies(logits: Tensor, target: Tensor) -> Tensor:
    """Of each sample `(B,)`."""
    log_probability = log_probabilities(logits)
    if target.ndim == 1:
        return -log_probability.gather(1, target[:, None]).squeeze(1)
    return -(target * log_probability).sum(-1)


class WSLD(ResponseLoss):
    """Weighted soft labels; see `wsld_loss`. It reads the labels, hard or soft.

    Default weights: task 1 and wsld 2.5, the paper's on ImageNet (cls_KD: 2.25 with T = 4 on CIFAR-100).
    """

    compares = "classes"
    default_weights = {"task": 1.0, "wsld": 2.5}

    def __init__(self, temperature: float = 2.0) -> None:
        """
        Args:
            temperature: T > 0 of the soft labels; the weights of the samples are taken at 1.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)` with the labels of `batch.target`, a scalar."""
        check_hard_or_soft_labels("WSLD", student, batch.target)
        return wsld_loss(student, teacher, batch.target, temperature=self.temperature)
