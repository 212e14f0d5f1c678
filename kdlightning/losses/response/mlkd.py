"""Multi-level logit distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import check_positive, check_share, full_precision
from kdlightning.losses.response.correlations import correlation_gaps
from kdlightning.losses.response.kd import standardized
from kdlightning.losses.response.softened import softened_kl


@full_precision
def class_correlation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Class-level alignment: (1/C) ‖Pᵗᵀ Pᵗ − Pˢᵀ Pˢ‖²_F with P = softmax(z/T), rows of samples.

    Jin, Wang & Lin, "Multi-Level Logit Distillation", CVPR 2023. The `(C, C)` matrices are sums over the batch, so the
    value grows with its square and depends on which samples share it. There is no T² factor.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar: the sum over pairs of classes, divided by C; float32 or better.
    """
    _check(student, teacher, temperature)
    return correlation_gaps(student[None], teacher[None], (temperature,), classes=True)


@full_precision
def batch_correlation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Batch-level alignment: (1/B) ‖Pᵗ Pᵗᵀ − Pˢ Pˢᵀ‖²_F with P = softmax(z/T), rows of samples.

    Jin, Wang & Lin, CVPR 2023; see `class_correlation_loss`.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        teacher: logits `(B, C)`; no gradient flows into them.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar: the sum over pairs of samples, divided by B; float32 or better.
    """
    _check(student, teacher, temperature)
    return correlation_gaps(student[None], teacher[None], (temperature,), samples=True)


def _check(student: Tensor, teacher: Tensor, *temperatures: float) -> None:
    check_logits(student, teacher)
    for temperature in temperatures:
        check_positive("temperature", temperature)
    if student.shape[1] < 2:
        raise ValueError("multi-level distillation needs at least two classes: the softmax of one output is always 1")


class MLKD(ResponseLoss):
    """Multi-level logit distillation (Jin, Wang & Lin, CVPR 2023), of a weakly and a strongly augmented view.

    The sum over the temperatures and the two views of three terms: `kd_loss` (instance level),
    `class_correlation_loss` and `batch_correlation_loss`. On the weak view they count only what the teacher is unsure
    of there: samples (instance and batch level) and classes (class level) whose confidence, the largest probability of
    a sample and the batch's sum of probabilities of a class, is at most the batch's median. Means over the batch and
    1/B, 1/C stay those of all samples and classes.

    This is what the authors' code sets out to do, and not what it does: its masks multiply terms that are scalars
    already, so each only shrinks by the mask's mean, about a half; the strong view's terms at T = 2 and 6 read the weak
    logits; and the class and batch levels of the strong view are computed and thrown away (`strong_correlations=False`
    leaves them out). Sun et al.'s `MLKD` shares all of this.

    It reads two views of each sample: one forward pass of each network sees both. Default weights: task 0.2, which is
    the paper's 0.1 for each of the two views since the task's loss is their mean, and mlkd 0.9. The term depends on
    which samples share a micro-batch.
    """

    compares = "classes"
    compares_samples = True
    views: ClassVar[int] = 2
    strong_views: ClassVar[bool] = True
    default_weights = {"task": 0.2, "mlkd": 0.9}

    def __init__(
        self,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        unsure: float = 0.5,
        strong_correlations: bool = True,
        standardize: bool = False,
    ) -> None:
        """
        Args:
            temperatures: each T > 0; 2 to 6 in the authors' code.
            unsure: share of samples and of classes that count on the weak view, the least confident ones, 0 to 1; 1
                counts all.
            strong_correlations: compare classes and samples on the strong view as well.
            standardize: standardise the logits of the instance level over the classes first (Sun et al., CVPR 2024,
                who leave the other levels as they are).
        """
        super().__init__()
        if not temperatures:
            raise ValueError("temperatures is empty: give at least one")
        for temperature in temperatures:
            check_positive("temperature", temperature)
        check_share("unsure", unsure)
        self.temperatures = tuple(temperatures)
        self.unsure = unsure
        self.strong_correlations = strong_correlations
        self.standardize = standardize

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of logits `(B, C)` of the weak and of the strong view, a scalar."""
        for logits in (student, teacher):
            if isinstance(logits, Tensor) or len(logits) != 2:
                raise ValueError("MLKD reads two views: give lists of their logits, the weak view's first")
        for ours, theirs in zip(student, teacher, strict=True):
            _check(ours, theirs)
        return self._levels(list(student), [logits.detach() for logits in teacher])

    @full_precision
    def _levels(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        sure = teacher[0].softmax(-1)
        samples, classes = (_on_weak(self._unsure(values)) for values in (sure.amax(-1), sure.sum(0)))
        ours, theirs = torch.cat(student), torch.cat(teacher)
        if self.standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        # The mean over the rows of both views, doubled: the sum of the means over each view's.
        instances = [2 * softened_kl(ours, theirs, t, samples.flatten()) for t in self.temperatures]
        kept = slice(2 if self.strong_correlations else 1)
        correlations = correlation_gaps(
            torch.stack(student[kept]),
            torch.stack(teacher[kept]),
            self.temperatures,
            classes=classes[kept],
            samples=samples[kept],
        )
        return sum(instances, correlations)

    def _unsure(self, confidence: Tensor) -> Tensor:
        """1 for the least confident ones, 0 for the others; found on the device."""
        return (confidence <= torch.quantile(confidence, self.unsure)).to(confidence.dtype)


def _on_weak(mask: Tensor) -> Tensor:
    """The mask for the weak view and ones for the strong one, `(2, n)`."""
    return torch.stack([mask, torch.ones_like(mask)])
