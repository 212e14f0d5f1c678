"""Losses on relations between the samples of a batch: distances, angles, similarities.

They compare what one micro-batch holds: gradient accumulation and more devices do not enlarge it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.angles import angle_loss
from kdlightning.losses.base import RelationLoss
from kdlightning.losses.numerics import full_precision


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
    student, teacher = _samples(student, teacher)
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


@full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ‖Gˢ − Gᵗ‖²_F / B².

    G = F Fᵀ of the flattened features `(B, D)`, each row divided by its L2 norm. Tung & Mori, "Similarity-Preserving
    Knowledge Distillation", ICCV 2019. RepDistiller and mdistiller agree; torchdistill's `SPKDLoss` divides the rows
    by their L1 norm.

    Args:
        student: `(B, …)`; reference code takes the last stage's map before pooling.
        teacher: `(B, …)`, its width and sizes may differ; no gradient flows into it.

    Returns:
        A scalar; float32 or better. A batch of one sample gives 0.
    """
    student, teacher = _samples(student, teacher)
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


def _samples(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `(B, D)`, the teacher's outside the graph."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ValueError(
            "relations need features (batch, …) of the same samples from both networks: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return student.flatten(1), teacher.detach().flatten(1)


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


class SP(RelationLoss):
    """Similarity-preserving distillation; see `sp_loss`.

    Depends on which samples share a micro-batch. Reference code uses the last map before pooling, weight 3000.
    """

    spatial = "any"

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return sp_loss(student, teacher)
