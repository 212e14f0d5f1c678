"""SimKD: the student learns the teacher's last map and answers through the teacher's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.heads import classifier_of, parameters_of, teacher_classifier
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_larger


@full_precision
def simkd_loss(student: Tensor, teacher: Tensor, *, layout: Layout = "channels_first") -> Tensor:
    """The mean over all elements of (Fˢ − Fᵗ)², with Fˢ the student's map after its projector.

    Maps of different sizes are brought together by average-pooling the larger. Chen et al., "Knowledge Distillation
    with the Reused Teacher Classifier", CVPR 2022; the authors' code agrees. It pools a larger map of the student
    before the projector, which is `map_size` of `ProjectedStudent`.

    Args:
        student: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`, pooled
            along the sequence.
        teacher: the same width; its size may differ. No gradient flows into it.
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better.
    """
    if student.ndim > 2 and teacher.ndim > 2:
        student, teacher = channels_first(student, layout), channels_first(teacher, layout)
    student, teacher = pool_larger(student, teacher.detach())
    if student.shape != teacher.shape:
        raise ValueError(
            f"SimKD compares maps of one width, not of shapes {tuple(student.shape)} and {tuple(teacher.shape)}: "
            "project the student's to the teacher's width"
        )
    return F.mse_loss(student, teacher)


class SimKD(FeatureLoss):
    """SimKD; see `simkd_loss`. It makes the teacher's classifier the student's own, and freezes it there.

    The student is a `ProjectedStudent`: its projector maps the last map to the teacher's width, and ships with it, as
    the classifier does; the exported student needs no teacher. Pair its tap `projector` with the teacher's last map
    before pooling. (Any network whose classifier has the shape of the teacher's will do, with its own last map.)

    Default weights: task 0 and sim_kd 1, the authors'. Labels are not needed, since the classifier does not learn.
    """

    deployed = True
    spatial = "any"
    default_weights = {"task": 0.0, "sim_kd": 1.0}

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the projector is the student's."""

    @torch.no_grad()
    def bind(self, context: LossContext) -> None:
        """Copies the teacher's classifier into the student's and freezes it."""
        own, other = classifier_of(context.student), teacher_classifier(context)
        if any(parameter.requires_grad for parameter in other.parameters()):
            raise ValueError(
                "the teacher's classifier still learns: SimKD needs a trained teacher, as FrozenTeacher is"
            )
        weight, bias = parameters_of(other, own.weight)
        if context.label_map is not None:
            rows = torch.tensor(context.label_map, device=weight.device)
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if own.weight.shape != weight.shape:
            raise ValueError(
                f"the teacher's classifier reads {weight.shape[1]} features for {weight.shape[0]} classes, the "
                f"student's {own.in_features} for {own.out_features}: make the student a ProjectedStudent of that "
                "teacher_width"
            )
        if own.bias is None and bias is not None:
            raise ValueError("the teacher's classifier has a bias and the student's none: give it one")
        own.weight.copy_(weight)
        if own.bias is not None:
            own.bias.copy_(torch.zeros_like(own.bias) if bias is None else bias)
        own.requires_grad_(False)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Checks that the projected map has the teacher's width."""
        ours, theirs = student[0], teacher[0]
        if len(ours) != len(theirs) or ours[1] != theirs[1]:
            raise ValueError(
                f"the student's map {tuple(ours[1:])} is not as wide as the teacher's {tuple(theirs[1:])}: pair the "
                "tap projector of a ProjectedStudent with the teacher's last map"
            )

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of the projected map and the teacher's, a scalar."""
        return simkd_loss(student, teacher)
