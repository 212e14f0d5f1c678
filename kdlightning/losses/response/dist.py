"""Distillation of relations between classes and between samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, full_precision

EPSILON = 1e-8


@full_precision
def dist_loss(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """DIST: T² · [β·(1 − mean_i ρ(yˢ_i·, yᵗ_i·)) + γ·(1 − mean_c ρ(yˢ_·c, yᵗ_·c))], y = softmax(z/T).

    The first part correlates the classes of each sample, the second the samples of each class; ρ is Pearson's
    correlation, a·b / (‖a‖‖b‖ + 1e-8) of the centred vectors. Huang et al., "Knowledge Distillation from A Stronger
    Teacher", NeurIPS 2022. The authors' code and mmrazor agree; torchdistill's bounds the denominator by 1e-8 instead
    of adding it. A class whose probabilities differ by less than about 1e-4 / √B counts as uncorrelated by that 1e-8,
    so equal logits of very many classes leave a value above 0.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        beta: weight of the relations between classes.
        gamma: weight of the relations between samples.
        temperature: T > 0; 1 on ImageNet, 4 on CIFAR-100.

    Returns:
        A scalar; float32 or better. In a batch of one sample the second part is γ·T² and has no gradient.
    """
    check_logits(student, teacher)
    check_positive("temperature", temperature)
    if student.shape[1] < 2:
        raise ValueError("DIST needs at least two classes")
    student, teacher = (student / temperature).softmax(-1), (teacher.detach() / temperature).softmax(-1)
    share = 1 / student.shape[1]
    between_classes = 1 - _cosines(student - share, teacher - share, 1).mean()
    between_samples = 1 - _cosines(student - student.mean(0), teacher - teacher.mean(0), 0).mean()
    return (beta * between_classes + gamma * between_samples) * temperature**2


def _cosines(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + EPSILON)


class DIST(ResponseLoss):
    """Distillation from a stronger teacher; see `dist_loss`.

    Depends on which samples share a micro-batch. Default weights: task 1 and dist 2, the paper's.
    """

    compares = "classes"
    compares_samples = True
    default_weights = {"task": 1.0, "dist": 2.0}

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        """
        Args:
            beta: weight of the relations between a sample's classes.
            gamma: weight of the relations between a class's samples.
            temperature: T > 0 of both softmaxes.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar."""
        return dist_loss(student, teacher, beta=self.beta, gamma=self.gamma, temperature=self.temperature)
