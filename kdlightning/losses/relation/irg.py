"""Instance relationship graphs: samples, distances between them, and what a layer does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import RelationLoss, Shape
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.products import SMALLEST, distance_shares
from kdlightning.losses.relation.samples import flat_samples
from kdlightning.losses.spatial import pool_larger


@full_precision
def irg_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_features: Tensor,
    teacher_features: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    vertex_weight: float = 0.1,
    edge_weight: float = 5.0,
    transform_weight: float = 5.0,
) -> Tensor:
    """Instance relationship graph: vertex_weight · V + edge_weight · E + transform_weight · T.

    * V: the mean squared difference of the logits.
    * E: the mean over the two maps and the features of the mean over all B² pairs of (Aˢ_ij − Aᵗ_ij)², A the squared
      Euclidean distances between the flattened samples over the largest of them.
    * T: the mean over the samples of (λˢ_i − λᵗ_i)², λ_i the squared distance between the first and the second map of
      sample i, over the largest in the batch. To make the two comparable, of two sizes the larger is average-pooled,
      and of two widths the larger is averaged over neighbouring channels.

    Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR 2019, as in the
    Knowledge-Distillation-Zoo (the authors' code is for Caffe), which takes the graphs of the student's and the
    teacher's maps one to one.

    Args:
        student_maps: two maps in the network's order, `(B, C, L)` or `(B, C, H, W)`; of vectors and tokens the
            distances have a meaning, too, but pooling from one to the other has none, so their sizes must agree.
        teacher_maps: two; widths and sizes may differ from the student's. No gradient flows into the teacher's tensors.
        student_features: `(B, …)`, flattened; reference code uses pooled features.
        teacher_features: `(B, …)`, their width may differ.
        student_logits: `(B, C)`.
        teacher_logits: `(B, C)`.
        vertex_weight: 0.1 in the Knowledge-Distillation-Zoo.
        edge_weight: 5 there.
        transform_weight: 5 there.

    Returns:
        A scalar; float32 or better. With one sample, edges and transformation are 0.
    """
    _check(student_maps, teacher_maps, student_logits, teacher_logits)
    loss = vertex_weight * F.mse_loss(student_logits, teacher_logits.detach())
    if edge_weight != 0:
        pairs = zip((*student_maps, student_features), (*teacher_maps, teacher_features), strict=True)
        flat = [flat_samples(own, other) for own, other in pairs]
        edges = [F.mse_loss(distance_shares(own), distance_shares(other)) for own, other in flat]
        loss = loss + edge_weight / 3 * (edges[0] + edges[1] + edges[2])
    if transform_weight != 0:
        own, other = _transformation(*student_maps), _transformation(*(maps.detach() for maps in teacher_maps))
        loss = loss + transform_weight * F.mse_loss(own, other)
    return loss


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor], logits: Tensor, other_logits: Tensor) -> None:
    if len(student) != 2 or len(teacher) != 2:
        raise ValueError(f"IRG takes two maps of each network, not {len(student)} and {len(teacher)}")
    if logits.ndim != 2 or logits.shape != other_logits.shape:
        raise ValueError(
            "IRG's vertices are logits of one shape (batch, classes), "
            f"not {tuple(logits.shape)} and {tuple(other_logits.shape)}"
        )


def _transformation(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances `(B,)` between two maps of one sample over the largest in the batch."""
    if first.ndim > 2:
        first, second = pool_larger(first, second)
    width = min(first.shape[1], second.shape[1])
    difference = (_narrowed(first, width) - _narrowed(second, width)).flatten(1)
    distances = torch.linalg.vector_norm(difference, dim=1).nan_to_num()
    return (distances / distances.amax().clamp(min=SMALLEST)).square()


def _narrowed(maps: Tensor, width: int) -> Tensor:
    """Maps whose neighbouring channels are averaged, `(B, width, …)`."""
    if maps.shape[1] == width:
        return maps
    if maps.shape[1] % width == 0:
        return maps.unflatten(1, (width, -1)).mean(2)
    rows = maps.reshape(*maps.shape[:2], -1).mT
    return F.adaptive_avg_pool1d(rows, width).mT.reshape(len(maps), width, *maps.shape[2:])


class IRG(RelationLoss):
    """Instance relationship graph; see `irg_loss`. Its four pairs are two maps, the pooled features and the logits.

    Depends on which samples share a micro-batch. The Knowledge-Distillation-Zoo takes the maps of the last two of
    three stages; default weights: task 1, irg 1 (the weights of the parts are inside).
    """

    joint = True
    spatial = "any"
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "irg": 1.0}

    def __init__(self, vertex_weight: float = 0.1, edge_weight: float = 5.0, transform_weight: float = 5.0) -> None:
        """
        Args:
            vertex_weight: factor of the logits' part.
            edge_weight: factor of the distances between samples; 0 leaves them out.
            transform_weight: factor of the distances between the two maps; 0 leaves them out.
        """
        super().__init__()
        self.vertex_weight = vertex_weight
        self.edge_weight = edge_weight
        self.transform_weight = transform_weight

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Nothing to make, but a wrong number of pairs is found out."""
        if len(student) != 4:
            raise ValueError(f"IRG needs four pairs of taps: two maps, pooled features and logits, not {len(student)}")

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of the four pairs, a scalar."""
        return irg_loss(
            student[:2],
            teacher[:2],
            student[2],
            teacher[2],
            student[3],
            teacher[3],
            vertex_weight=self.vertex_weight,
            edge_weight=self.edge_weight,
            transform_weight=self.transform_weight,
        )
