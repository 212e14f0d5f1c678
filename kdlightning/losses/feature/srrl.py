"""Softmax regression representation learning: the student's features must say the same to the teacher's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.heads import parameters_of, teacher_classifier
from kdlightning.losses.layers import NORMS, check_normalisable, pointwise
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, position_mean


@full_precision
def srrl_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    student_logits_through_teacher_head: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 5.0,
    layout: Layout = "channels_first",
) -> Tensor:
    """Softmax regression representation learning: α · MSE(x̄, f̄) + β · MSE(h(x̄), z).

    x̄ and f̄ are the means over the positions of the student's connected features and of the teacher's, h the teacher's
    classifier, z its logits; MSE is the mean over samples and channels (classes). Yang, Martinez, Bulat &
    Tzimiropoulos, "Knowledge distillation via softmax regression representation learning", ICLR 2021. cls_KD agrees;
    the authors' ImageNet code has α = β = 1, and SimKD's repository too, on pooled vectors.

    Args:
        student_features: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`;
            after the connector, which has the teacher's width.
        teacher_features: the same width; its number and sizes of dimensions may differ.
        student_logits_through_teacher_head: `(B, classes)`.
        teacher_logits: `(B, classes)`; no gradient flows into it or into the teacher's features.
        alpha: weight of the features' part; 1 in paper and code.
        beta: weight of the logits' part; 5 in cls_KD.
        layout: which dimension holds the channels, of both features.

    Returns:
        A scalar; float32 or better.
    """
    student, teacher = position_mean(student_features, layout), position_mean(teacher_features, layout)
    if student.shape != teacher.shape:
        raise ValueError(
            "SRRL compares features of one width after its connector: "
            f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}"
        )
    if student_logits_through_teacher_head.shape != teacher_logits.shape:
        raise ValueError(
            "SRRL compares logits of one shape: "
            f"{tuple(student_logits_through_teacher_head.shape)} and {tuple(teacher_logits.shape)}"
        )
    features = F.mse_loss(student, teacher.detach())
    logits = F.mse_loss(student_logits_through_teacher_head, teacher_logits.detach())
    return alpha * features + beta * logits


class Connector(nn.Sequential):
    """1×1 convolution (a linear layer for vectors) to the teacher's width, BatchNorm, and perhaps ReLU."""

    def __init__(self, student: Shape, teacher: Shape, *, relu: bool) -> None:
        first: Any = pointwise(len(student), student[1], teacher[1], bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(first, NORMS[len(student)](teacher[1]), *([nn.ReLU(inplace=True)] if relu else []))

    def forward(self, input: Tensor) -> Tensor:
        """Features in the teacher's width.

        Raises:
            ValueError: in training, a batch whose channels have a single value, which BatchNorm cannot normalise.
        """
        if self.training:
            check_normalisable("SRRL's connector", input)
        return super().forward(input)


class SRRL(FeatureLoss):
    """Softmax regression representation learning; see `srrl_loss`.

    The connector (1×1 convolution without bias, BatchNorm, ReLU) is the adapter that `FeatureKD` builds. The teacher's
    classifier is the one that the teacher has; it gets no gradient and is in no checkpoint. Both logits are what it
    makes of the pooled features, so the tap must be what the classifier reads: the last map of a network that averages
    and classifies, or `pre_logits`, for any network. One stage only, as in the paper, beside cross-entropy 1.
    """

    spatial = "any"

    def __init__(self, alpha: float = 1.0, beta: float = 5.0, relu: bool = True) -> None:
        """
        Args:
            alpha: weight of the features' part.
            beta: weight of the logits' part.
            relu: end the connector with a ReLU. Leave it out (`False`) where the teacher's features have negative
                values, as those of a transformer.
        """
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.relu = relu
        self._head: tuple[nn.Linear, ...] = ()

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """The connector for one pair of shapes (with batch dimension)."""
        if len(student) not in (2, 3, 4):
            raise ValueError(f"SRRL connects vectors, signals or maps, not shape {tuple(student)}")
        return Connector(student, teacher, relu=self.relu)

    def bind(self, context: LossContext) -> None:
        """Finds the teacher's classifier."""
        self._head = (teacher_classifier(context),)  # in a tuple, and so no part of this module

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Checks that the classifier reads the tapped features."""
        wide, given = self._head[0].in_features, teacher[0][1]
        if wide != given:
            raise ValueError(
                f"the teacher's classifier reads {wide} features and its tap gives {given}: tap its last map, or "
                "pre_logits"
            )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of connected student features and teacher features, a scalar."""
        ours, theirs = position_mean(student), position_mean(teacher).detach()
        weight, bias = parameters_of(self._head[0], ours)
        logits = F.linear(ours, weight, bias), F.linear(theirs, weight, bias)
        return srrl_loss(ours, theirs, *logits, alpha=self.alpha, beta=self.beta)
