"""Normalised knowledge distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, full_precision, log_probabilities
from kdlightning.losses.response.labels import check_hard_labels
from kdlightning.losses.response.softened import softened_cross_entropy


@full_precision
def nkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalised KD: (1/B) Σ_i [−pᵗ_y log pˢ_y − γ·T² Σ_{c≠y} nᵗ_c log nˢ_c].

    y is the label, p = softmax(z) at temperature 1, and n = softmax(z/T) over the classes other than y, so that both
    networks' n sum to 1. Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023. It is a cross-entropy: equal logits leave the teacher's
    entropy and not 0. The authors' code takes the largest entry of a soft target for the label; here it is refused.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        target: hard labels `(B,)`, int64.
        gamma: weight of the other classes; 1.5 on ImageNet, 3.5 (with T = 3) on CIFAR-100.
        temperature: T > 0 of the other classes' part; 1 on ImageNet.

    Returns:
        A scalar, the mean over the batch; float32 or better. With two classes the second part is 0.
    """
    check_logits(student, teacher)
    check_positive("temperature", temperature)
    check_hard_labels("NKD", student, target)
    if student.shape[1] < 2:
        raise ValueError("NKD needs at least two classes")
    teacher, label = teacher.detach(), target[:, None]
    certainty = teacher.softmax(-1).gather(1, label)
    target_part = -(certainty * log_probabilities(student).gather(1, label)).mean()
    others, teacher_others = (logits.scatter(1, label, float("-inf")) for logits in (student, teacher))
    return target_part + gamma * softened_cross_entropy(others, teacher_others, temperature)


class NKD(ResponseLoss):
    """Normalised knowledge distillation; see `nkd_loss`. It reads the labels and refuses soft targets.

    Default weights: task 1 and nkd 1, as in the authors' code.
    """

    compares = "classes"
    default_weights = {"task": 1.0, "nkd": 1.0}

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        """
        Args:
            gamma: weight of the other classes' part; see `nkd_loss`.
            temperature: T > 0 of the other classes' part.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)` with the labels of `batch.target`, a scalar."""
        check_hard_labels("NKD", student, batch.target)
        return nkd_loss(student, teacher, batch.target, gamma=self.gamma, temperature=self.temperature)
