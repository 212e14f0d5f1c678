"""Probabilistic knowledge transfer: which samples are likely to be each other's neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdlightning.losses.base import RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.products import cosines
from kdlightning.losses.relation.samples import flat_samples

EPS = 1e-7
"""Added to norms and probabilities, as in the authors' code."""


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: (1/B²) Σ_ij pᵗ_ij · log((pᵗ_ij + ε) / (pˢ_ij + ε)), ε = 1e-7.

    p_ij is (cos(x_i, x_j) + 1)/2 divided by its sum over j, the sample itself included; the norms in the cosine are
    ‖x‖ + ε. Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, with
    the cosine kernel. It is the mean over all B² entries, as in the authors' code, RepDistiller, mdistiller and
    torchdistill (weight 30000 there), so it is 1/B of the mean divergence of the rows; the Knowledge-Distillation-Zoo
    has ε = 1e-6.

    Args:
        student: `(B, …)`, flattened to `(B, D)`; reference code uses pooled features.
        teacher: `(B, …)`, its width may differ; no gradient flows into it.

    Returns:
        A scalar; float32 or better. A batch of one sample gives 0. A sample whose features are all zero has the
        cosine 0 to every other and gets no gradient.
    """
    student, teacher = flat_samples(student, teacher)
    own, target = _shares(student), _shares(teacher)
    return (((target + EPS) / (own + EPS)).log() * target).mean()


def _shares(features: Tensor) -> Tensor:
    """p `(B, B)`; the half of each similarity cancels in the division."""
    similarities = cosines(features, eps=EPS) + 1
    return similarities / similarities.sum(1, keepdim=True)


class PKT(RelationLoss):
    """Probabilistic knowledge transfer; see `pkt_loss`.

    Depends on which samples share a micro-batch. Reference code uses pooled features (timm's `pre_logits`); default
    weights: task 1, pkt 30000.
    """

    spatial = "any"
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "pkt": 30000.0}

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return pkt_loss(student, teacher)
