"""Knowledge distillation of logits, perhaps standardised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.response.softened import softened_kl


def standardized(logits: Tensor) -> Tensor:
    """Logit standardisation (Sun et al., CVPR 2024): (z − mean) / (1e-7 + std) over the classes of each sample.

    Args:
        logits: `(B, C)` with C ≥ 2. The deviation is the unbiased one, as in the authors' code.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = centred.norm(dim=-1, keepdim=True) / (logits.shape[-1] - 1) ** 0.5
    return centred / (1e-7 + deviation)


@full_precision
def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, standardize: bool = False) -> Tensor:
    """Knowledge distillation: T² · (1/B) Σ_i KL(softmax(zᵗ_i/T) ‖ softmax(zˢ_i/T)).

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015. With `temperature=1` it is the
    mimicry term KL(peer ‖ self) of deep mutual learning (Zhang et al., CVPR 2018).

    Well-known code differs: torchdistill's `KDLoss` drops T² when it is given no labels, and its alpha weighs the
    cross-entropy; KD_Lib takes the squared error of probabilities.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        temperature: T > 0; 4 is the CIFAR-100 habit of RepDistiller and mdistiller, 1 their ImageNet one.
        standardize: standardise both logits first (Sun et al., 2024, who use T = 2 and weights 0.1 and 9).

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, teacher)
    check_positive("temperature", temperature)
    if student.shape[1] < 2:
        raise ValueError("KD needs at least two classes: the softmax of a single output is always 1")
    teacher = teacher.detach()
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    return softened_kl(student, teacher, temperature)


class KD(ResponseLoss):
    """Knowledge distillation of a classifier's logits; see `kd_loss`.

    Default weights: task 0.1 and kd 0.9, those of RepDistiller and mdistiller on CIFAR-100 (mdistiller's ImageNet:
    T = 1 with 0.5 and 0.5; Sun et al.'s standardised logits: T = 2 with 0.1 and 9).
    """

    compares = "classes"
    default_weights = {"task": 0.1, "kd": 0.9}

    def __init__(self, temperature: float = 4.0, standardize: bool = False) -> None:
        """
        Args:
            temperature: T > 0 of both softmaxes.
            standardize: standardise both logits over the classes first.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar."""
        return kd_loss(student, teacher, temperature=self.temperature, standardize=self.standardize)
