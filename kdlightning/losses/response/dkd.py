"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.response.kd import standardized
from kdlightning.losses.response.labels import check_hard_labels
from kdlightning.losses.response.softened import softened_kl


@full_precision
def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Tensor:
    """Decoupled knowledge distillation: α·TCKD + β·NCKD, each times T² and averaged over the batch.

    With p = softmax(z/T) and y the label, TCKD = KL between the binary distributions (p_y, 1 − p_y), and NCKD = KL
    between the distributions over the other classes, p_c / (1 − p_y); both KL(teacher ‖ student). KD itself is
    TCKD + (1 − pᵗ_y)·NCKD. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

    Everything is computed from log-sum-exps, so value and gradient stay finite for any finite logits; the authors'
    code takes the log of a sum of probabilities and gives inf and NaN once a gap exceeds about 104·T in float32. With
    two classes NCKD is 0. mmrazor's `DKDLoss` returns the batch sum whatever its `reduction` says.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        target: hard labels `(B,)`, int64.
        alpha: weight of TCKD; 1 in the paper.
        beta: weight of NCKD; 8 in the paper for ResNet32x4 → ResNet8x4, 6 or 2 for other CIFAR pairs, 0.5 (T = 1) for
            ResNet34 → ResNet18 on ImageNet.
        temperature: T > 0; 4 on CIFAR-100.
        standardize: standardise both logits first (Sun et al., CVPR 2024).

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, teacher)
    check_positive("temperature", temperature)
    check_hard_labels("DKD", student, target)
    if student.shape[1] < 2:
        raise ValueError("DKD needs at least two classes")
    teacher = teacher.detach()
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    pair_student, rest_student = _target_and_rest(student / temperature, target[:, None])
    pair_teacher, rest_teacher = _target_and_rest(teacher / temperature, target[:, None])
    target_part = softened_kl(pair_student, pair_teacher, 1.0)
    rest_part = softened_kl(rest_student, rest_teacher, 1.0)
    return (alpha * target_part + beta * rest_part) * temperature**2


def _target_and_rest(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(B, 2)` of the label against all others together, and `(B, C)` of the others, -inf at the label."""
    others = logits.scatter(1, target, float("-inf"))
    return torch.cat([logits.gather(1, target), others.logsumexp(-1, keepdim=True)], -1), others


class DKD(ResponseLoss):
    """Decoupled knowledge distillation; see `dkd_loss`. It reads the labels and refuses soft targets.

    Default weights: task 1 and dkd 1. The paper multiplies the term by min(epoch / 20, 1) on CIFAR-100 (1 epoch on
    ImageNet). That warm-up is a schedule of the term's weight, not an option of the loss:
    `weights={"dkd": LinearSchedule(0, 1, until=20, unit="epochs")}`.
    """

    compares = "classes"
    default_weights = {"task": 1.0, "dkd": 1.0}

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardize: bool = False
    ) -> None:
        """
        Args:
            alpha: weight of the target-class part.
            beta: weight of the other classes' part; depends on the pair, see `dkd_loss`.
            temperature: T > 0 of all softmaxes.
            standardize: standardise both logits over the classes first.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)` with the labels of `batch.target`, a scalar."""
        check_hard_labels("DKD", student, batch.target)
        return dkd_loss(
            student,
            teacher,
            batch.target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            standardize=self.standardize,
        )
