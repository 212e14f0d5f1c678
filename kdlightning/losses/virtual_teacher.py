"""A teacher that nobody trains: right with a given probability, and indifferent between all other classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.response.kd import kd_loss


@full_precision
def virtual_teacher_loss(
    student: Tensor, target: Tensor, *, accuracy: float = 0.99, temperature: float = 20.0, soften_student: bool = True
) -> Tensor:
    """T² · (1/B) Σ_i KL(qᵀ_i ‖ softmax(z_i/T)), where qᵀ ∝ q^(1/T) and q_y = a, q_c = (1 − a)/(C − 1) for c ≠ y.

    The regulariser of Tf-KD (Yuan et al., CVPR 2020). q has logits log(a·(C − 1)/(1 − a)) for the class y and 0 for the
    others, so this is knowledge distillation from such logits; T² is that of distillation, which the paper does not
    write in any of its formulas and without which the gradient at T = 20 is next to nothing.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        target: class numbers `(B,)`, int64.
        accuracy: a, above 1/C and below 1.
        temperature: T > 0.
        soften_student: False leaves the student's softmax at temperature 1, without T²: (1/B) Σ_i KL(qᵀ_i ‖
            softmax(z_i)), a label smoothing towards qᵀ.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    if student.ndim != 2 or target.shape != student.shape[:1]:
        raise ValueError(
            "student and target must be logits (batch, classes) and class numbers (batch,): "
            f"{tuple(student.shape)} and {tuple(target.shape)}"
        )
    check_positive("temperature", temperature)
    check_accuracy(accuracy, student.shape[1])
    gap = math.log(accuracy * (student.shape[1] - 1) / (1 - accuracy))
    scale = 1.0 if soften_student else temperature
    teacher = torch.zeros_like(student).scatter_(1, target[:, None], gap / scale)
    return kd_loss(student, teacher, temperature=temperature / scale)


def check_accuracy(accuracy: float, classes: int) -> None:
    """Raises ValueError unless a virtual teacher of this accuracy prefers the right class and is not certain of it."""
    if not 1 / classes < accuracy < 1:
        raise ValueError(f"accuracy must be above 1/{classes}, which is chance, and below 1, not {accuracy}")
