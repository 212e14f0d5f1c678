"""Relational knowledge distillation: distances and angles between samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import RelationLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.angles import angle_loss
from kdlightning.losses.relation.samples import flat_samples


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational knowledge distillation: distance_weight · L_D + angle_weight · L_A.

    * L_D: the mean over all B² ordered pairs of huber(dˢ_ij/μˢ − dᵗ_ij/μᵗ), d the Euclidean distance, μ its mean over
      the pairs of different samples.
    * L_A: the mean over all B³ ordered triples of huber(cosˢ_ijk − cosᵗ_ijk), the cosine of the angle at sample i
      between the directions to j and to k; 0 where two of them coincide.

    huber is smooth L1 with threshold 1. Park et al., "Relational Knowledge Distillation", CVPR 2019. mmrazor
    L2-normalises the embeddings first by default, which gives other values. Angles are computed over blocks of anchors
    from inner products, so memory grows with B², not with B³ or B²·D.

    Args:
        student: `(B, …)`, flattened to `(B, D)`; the reference uses pooled features.
        teacher: `(B, …)`, its width may differ; no gradient flows into it.
        distance_weight: 25 in RepDistiller and the authors' code.
        angle_weight: 50 there.

    Returns:
        A scalar; float32 or better. Batches of one sample have no relation and give 0.
    """
    student, teacher = flat_samples(student, teacher)
    if len(student) < 2:
        return student.sum() * 0.0
    gram_student, gram_teacher = _centred_gram(student), _centred_gram(teacher)
    loss = student.new_zeros(())
    if distance_weight != 0:
        difference = _distances(gram_student) - _distances(gram_teacher)
        loss = loss + distance_weight * F.smooth_l1_loss(difference, difference.new_zeros(()).expand_as(difference))
    if angle_weight != 0:
        loss = loss + angle_weight * angle_loss(gram_student, gram_teacher)
    return loss.to(student.dtype)


def _centred_gram(embeddings: Tensor) -> Tensor:
    """Inner products of the embeddings after their mean is subtracted, in float64 where the device has it.

    Distances and angles do not change with the origin; centring and the wider type keep the differences of inner
    products exact where the embeddings of a batch are close together.
    """
    embeddings = embeddings - embeddings.mean(0, keepdim=True).detach()
    wide = embeddings if embeddings.device.type == "mps" else embeddings.double()
    return wide @ wide.T


def _distances(gram: Tensor) -> Tensor:
    """Euclidean distances over their mean, `(B, B)`, 0 on the diagonal."""
    norms = gram.diagonal()
    size = len(gram)
    squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=1e-12)
    diagonal = squared.new_ones(size).diag().bool()
    distances = squared.sqrt().masked_fill(diagonal, 0.0)
    return distances * (size * (size - 1)) / distances.sum()


class RKD(RelationLoss):
    """Relational knowledge distillation of distances and angles; see `rkd_loss`.

    Depends on which samples share a micro-batch. Reference code uses pooled features (timm's `pre_logits`), weight 1.
    """

    spatial = "any"

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        """
        Args:
            distance_weight: factor of the distance part; 0 leaves it out.
            angle_weight: factor of the angle part; 0 leaves it out.
        """
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return rkd_loss(student, teacher, distance_weight=self.distance_weight, angle_weight=self.angle_weight)
