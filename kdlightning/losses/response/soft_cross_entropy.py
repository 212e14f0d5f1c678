"""Cross-entropy with the teacher's probabilities, as TinyBERT's prediction stage has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, log_probabilities, widened
from kdlightning.losses.online import soft_cross_entropy


class SoftCrossEntropy(ResponseLoss):
    """Soft cross-entropy of a classifier's logits: −(1/B) Σ_i Σ_c softmax(zᵗ_i/T)_c · log softmax(zˢ_i/T)_c.

    TinyBERT's prediction-layer loss (Jiao et al., Findings of EMNLP 2020, equation 10), who take T = 1. `KD` is the
    same less the teacher's entropy, times T²: at T = 1 its gradient is this one's.

    Default weights: task 0, as in the paper, and soft_cross_entropy 1. For regression tasks (STS-B) `LogitMSE` is the
    loss to the teacher's number; the released code learns the gold number there, without the teacher, which the
    supervised `DistillModule` does.
    """

    compares = "classes"
    default_weights = {"task": 0.0, "soft_cross_entropy": 1.0}

    def __init__(self, temperature: float = 1.0, divide_by_classes: bool = False) -> None:
        """
        Args:
            temperature: T > 0 of both softmaxes; there is no T² factor.
            divide_by_classes: take the mean over classes too, as the released code does; the term is then C times
                smaller.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.divide_by_classes = divide_by_classes

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar; float32 or better."""
        check_logits(student, teacher)
        targets = log_probabilities(widened(teacher.detach()), self.temperature).exp()
        value = soft_cross_entropy(student, targets, temperature=self.temperature)
        return value / student.shape[1] if self.divide_by_classes else value
