"""The overhaul of feature distillation: margin ReLU on the teacher, a distance that skips what costs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.feature.norm_of_tap import norm_of_tap
from kdlightning.losses.layers import NORMS, pointwise
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first

Margin = Literal["batch_norm", "running"]
RARE = 1e-3
"""Below this share of negative responses the paper's code takes three standard deviations instead of their mean."""


@full_precision
def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor, *, layout: Layout = "channels_first") -> Tensor:
    """Overhaul of feature distillation: Σ (Fˢ − T)² / B over the elements where Fˢ > T or T > 0; T = max(Fᵗ, m_c).

    Both are features before the activation. Where the teacher's response is negative, only a student above it pays.
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019; the authors' code multiplies by 1/1000
    and by 2^-(n−1−i) for stage i of n (0 the first). mdistiller takes the mean over the batch and the sum over the
    rest, which is the same number.

    Args:
        student: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`; after the
            connector (see `OFD`).
        teacher: the same shape; no gradient flows into it.
        margin: m, `(C,)`, not above zero: the mean of each channel's negative responses (see `ofd_margin`).
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better. It grows with the number of elements of a sample.
    """
    if student.ndim < 2 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher features must have one shape (batch, channels, …): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = channels_first(student, layout), channels_first(teacher, layout)
    if margin.shape != student.shape[1:2]:
        raise ValueError(f"margin must have shape ({student.shape[1]},), not {tuple(margin.shape)}")
    with torch.no_grad():
        target = torch.maximum(teacher, margin.view(1, -1, *[1] * (teacher.ndim - 2)))
        # 1 where student > target or target > 0. A mask of the features' own type spares the slow way through bool.
        counted = torch.maximum(student - target, target).gt_(0)
    return F.mse_loss(student, target, reduction="none").mul_(counted).sum() / len(student)


def ofd_margin(bn: nn.Module) -> Tensor:
    """The mean of each channel's negative responses after a BatchNorm, under the normal distribution it aims at.

    With mean μ = bias and standard deviation s = |weight| it is E[x | x < 0] = μ − s·φ(μ/s) / Φ(−μ/s), or −3s where at
    most 0.1 % of the responses are negative, as in the authors' code.

    Args:
        bn: a BatchNorm, with or without weight and bias.

    Returns:
        `(C,)`; float32 or better.
    """
    if not isinstance(bn, nn.modules.batchnorm._NormBase):
        raise ValueError(f"the margin is that of a BatchNorm, not of a {type(bn).__name__}")
    ones = torch.ones(bn.num_features, dtype=torch.float64)
    weight = ones if bn.weight is None else bn.weight.detach().double()
    mean = 0 * weight if bn.bias is None else bn.bias.detach().double()
    # Without spread a channel is its mean: the quotient is 0 or infinite then, never NaN.
    spread = weight.abs()
    ratio = mean / spread.clamp(min=torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = torch.where(share > RARE, mean - spread * density / share.clamp(min=RARE), -3 * spread)
    return margin.to(torch.promote_types(torch.float32, torch.float32 if bn.weight is None else bn.weight.dtype))


class OFD(FeatureLoss):
    """Overhaul of feature distillation; see `ofd_loss`.

    The connector is a 1×1 convolution without bias (a linear layer for vectors), drawn from N(0, 2/C_t), and a
    BatchNorm, on the student's side. Maps of different sizes are average-pooled to the smaller one.

    Name taps before the activation: the teacher's should be the BatchNorm in front of it, from whose weight and bias
    the margin is taken once, before training. The paper lets the teacher normalise with batch statistics: set
    `batch_stats: true` of `FrozenTeacher`. Its stages weigh 2^-(n−1−i), the last one 1, and the term 0.001 beside task
    1 (CIFAR-100; mdistiller has 0.0001 on ImageNet).
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "ofd": 1e-3}
    margins: Tensor
    negatives: Tensor
    counts: Tensor

    def __init__(self, margin: Margin = "batch_norm") -> None:
        """
        Args:
            margin: "batch_norm" takes it from the teacher's BatchNorm; "running" is the mean of all negative responses
                seen in training so far, for taps without one and for teachers that still learn (saved; of rank 0 where
                there are several).
        """
        super().__init__()
        if margin not in ("batch_norm", "running"):
            raise ValueError(f"margin must be batch_norm or running, not {margin!r}")
        self.margin = margin
        self._found: Tensor | None = None

    def bind(self, context: LossContext) -> None:
        """Takes the margin from the teacher's BatchNorm."""
        if self.margin != "batch_norm":
            return
        if context.teacher is None:
            raise ValueError("the margin is taken from a teacher network, and there is none: set margin: running")
        (tap,) = context.teacher_taps
        self._found = ofd_margin(norm_of_tap(context.teacher, tap))

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """The connector for one pair of shapes (with batch dimension)."""
        if len(student) != len(teacher) or len(student) not in NORMS:
            raise ValueError(f"OFD needs two vectors or two maps, not shapes {tuple(student)} and {tuple(teacher)}")
        connector: Any = pointwise(len(student), student[1], teacher[1], bias=False)
        nn.init.normal_(connector.weight, std=math.sqrt(2 / teacher[1]))
        return nn.Sequential(connector, NORMS[len(student)](teacher[1]))

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Keeps the margin, or what it is counted from."""
        channels = teacher[0][1]
        if self.margin == "running":
            self.register_buffer("negatives", torch.zeros(channels))
            self.register_buffer("counts", torch.zeros(channels))
            return
        if self._found is None:
            raise ValueError("the margin is not known: call bind() first, or set margin: running")
        if len(self._found) != channels:
            raise ValueError(f"the BatchNorm has {len(self._found)} channels and the tap {channels}: name its own tap")
        self.register_buffer("margins", self._found)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        return ofd_loss(student, teacher, self._margins(teacher))

    @torch.no_grad()
    def _margins(self, teacher: Tensor) -> Tensor:
        if self.margin == "batch_norm":
            return self.margins
        if self.training:
            negative = teacher.float().clamp(max=0).transpose(0, 1).flatten(1)
            self.negatives += negative.sum(1)
            self.counts += (negative < 0).sum(1)
        return self.negatives / self.counts.clamp(min=1)
