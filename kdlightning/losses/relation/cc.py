"""Correlation congruence: how samples correlate under a Gaussian kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import RelationLoss, Shape
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.relation.products import cosines
from kdlightning.losses.relation.samples import flat_samples


@full_precision
def cc_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence: (1/B²) Σ_ij (Kˢ_ij − Kᵗ_ij)².

    K_ij = e^(−2γ) · Σ_{p=0…P} (2γ)^p/p! · cos(x_i, x_j)^p is the Taylor series of the Gaussian kernel
    exp(−γ‖u_i − u_j‖²) of the L2-normalised features u. Peng et al., "Correlation Congruence for Knowledge
    Distillation", ICCV 2019; the Knowledge-Distillation-Zoo has this form. torchdistill takes the Frobenius norm (not
    its square) over B², of features as its linear layers give them. The authors' own code, which RepDistiller keeps,
    is no kernel: the mean over consecutive rows of Σ_d |δ_i| |δ_{i+1}|, δ = xˢ − xᵗ of two trained embeddings.

    Args:
        student: `(B, …)`, flattened to `(B, D)`; reference code uses pooled features.
        teacher: `(B, …)`, its width may differ; no gradient flows into it.
        gamma: γ > 0 of the kernel; 0.4 in paper and code.
        order: P ≥ 1 of the series; 2 in paper and code.

    Returns:
        A scalar; float32 or better. A batch of one sample gives 0, unless its features are all zero.
    """
    check_positive("gamma", gamma)
    check_order(order)
    return _difference(*flat_samples(student, teacher), gamma, order)


@full_precision
def _difference(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    return F.mse_loss(_kernel(cosines(student), gamma, order), _kernel(cosines(teacher), gamma, order))


def check_order(order: int) -> None:
    """Raises ValueError unless the series has a term."""
    if order < 1:
        raise ValueError(f"order must be at least 1, not {order}: the term of order 0 is a constant")


def _kernel(cosine: Tensor, gamma: float, order: int) -> Tensor:
    """The series by Horner's rule, without its constant: the difference of two does not see it."""
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(1, order + 1)]
    value = cosine * factors[-1]
    for factor in reversed(factors[:-1]):
        value = (value + factor) * cosine
    return value


class CC(RelationLoss):
    """Correlation congruence; see `cc_loss`.

    Depends on which samples share a micro-batch. Correlations need no common width, so by default the features are
    compared as they are. With `dimensions`, both pass a linear layer first, as in torchdistill (128 in its
    configuration); both layers are trained, the teacher's too, and what they agree on may be less than the teacher
    knows: two constant layers would agree fully.

    The Knowledge-Distillation-Zoo uses pooled features; default weights are its own: task 1, cc 100.
    """

    spatial = "any"
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "cc": 100.0}

    def __init__(self, gamma: float = 0.4, order: int = 2, dimensions: int | None = None) -> None:
        """
        Args:
            gamma: γ of the Gaussian kernel.
            order: where its series ends.
            dimensions: width of two trained linear layers before the comparison; None for none.
        """
        super().__init__()
        check_positive("gamma", gamma)
        check_order(order)
        if dimensions is not None and dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, not {dimensions}; leave it out for no embedding")
        self.gamma = gamma
        self.order = order
        self.dimensions = dimensions

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The two embeddings, if any."""
        if self.dimensions is None:
            return
        widths = [math.prod(shape[1:]) for (shape,) in (student, teacher)]
        self.student_embedding, self.teacher_embedding = (nn.Linear(width, self.dimensions) for width in widths)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        student, teacher = flat_samples(student, teacher)
        if self.dimensions is None:
            return cc_loss(student, teacher, gamma=self.gamma, order=self.order)
        embedded = self.student_embedding(student), self.teacher_embedding(teacher)
        return _difference(*embedded, self.gamma, self.order)
