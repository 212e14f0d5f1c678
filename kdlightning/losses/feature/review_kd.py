"""Knowledge review: each of the teacher's levels is taught to all of the student's levels up to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.fusion import Fusion
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_to

LEVELS = (4, 2, 1)
"""Sides of the pooled maps that are compared beside the whole one."""


@full_precision
def hcl_loss(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], *, layout: Layout = "channels_first"
) -> Tensor:
    """Hierarchical context loss, summed over the maps of a list: Σ_l w_l · MSE(pool_l(Fˢ), pool_l(Fᵗ)) / Σ_l w_l.

    The levels are the whole map and its average-poolings to 4×4, 2×2 and 1×1; those that are not smaller than the
    map's height (a signal's length) are left out. The whole map weighs 1, and each kept level half of the one before.
    MSE is the mean over all elements. Chen, Liu, Zhao & Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021.
    Their code, mdistiller's and torchdistill's agree.

    Args:
        student: a map `(B, C, H, W)`, a signal `(B, C, L)`, a vector `(B, C)` (a map of one position), or tokens
            `(B, N, D)` with `layout="channels_last"`, pooled along the sequence; or a list of them.
        teacher: the same shapes; no gradient flows into it.
        layout: which dimension holds the channels, of all.

    Returns:
        A scalar; float32 or better.
    """
    ours = [student] if isinstance(student, Tensor) else list(student)
    theirs = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"HCL needs as many maps of the teacher as of the student: {len(theirs)} and {len(ours)}")
    values = [_one_map(own, other.detach(), layout) for own, other in zip(ours, theirs, strict=True)]
    return sum(values[1:], values[0])


def _one_map(student: Tensor, teacher: Tensor, layout: Layout) -> Tensor:
    if student.shape != teacher.shape or student.ndim < 2:
        raise ValueError(
            "HCL compares maps (batch, channels, …) of one shape: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; ReviewKD brings others together"
        )
    if student.ndim > 2:
        student, teacher = channels_first(student, layout), channels_first(teacher, layout)
    whole = student.shape[2:]
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for side in LEVELS:
        if not whole or side >= whole[0]:
            continue
        ours, theirs = (pool_to(maps, [side] * len(whole)) for maps in (student, teacher))
        weight, total = weight / 2, total + weight / 2
        loss = loss + weight * F.mse_loss(ours, theirs)
        if all(n % side == 0 for n in whole):
            student, teacher = ours, theirs  # means of means: the next level need not read the whole map again
    return loss / total


class ReviewKD(FeatureLoss):
    """Knowledge review: attention-based fusion of the student's levels, then `hcl_loss` to the teacher's.

    It takes all pairs together, written from shallow to deep, any number of any shapes; the last may be the pooled
    vectors. From the deepest to the shallowest level, `Fusion` joins the student's features with the residual of the
    deeper levels and maps them to the teacher's width and size: to larger sizes by nearest neighbour, as the authors
    do, to smaller ones, which their tables never need, by average-pooling. So widths, sizes and even numbers of
    dimensions may differ within a pair. A vector is a map of one position. The networks normalise over the batch:
    vectors need batches of at least two in training.

    Reference code compares with the teacher's maps before their last ReLU, and the pooled vector; weights on CIFAR-100
    are 0.6 to 8 by pair beside cross-entropy 1 (5 for WRN-40-2 → WRN-16-2), times min(epoch / 20, 1), which here is a
    schedule of the term's weight: `weight=LinearSchedule(0, 5, until=20, unit="epochs")`; on ImageNet 1 (ResNet-34 →
    ResNet-18) and 8, with one epoch. It has its widths and sizes in tables by pair of networks. The authors leave the
    teacher's batch norms in training mode; here, as in mdistiller, they are in evaluation mode.
    """

    joint = True
    spatial = "any"

    def __init__(self, channels: int | None = None) -> None:
        """
        Args:
            channels: common width of the levels; None for the deepest level's, 512 at most, as in reference code on
                CIFAR-100. On ImageNet it has 512 for ResNet-18 and 256 for MobileNet.
        """
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be above 0, not {channels}")
        self.channels = channels
        self.fusions = nn.ModuleList()

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the fusion maps widths and sizes."""

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Makes a fusion for each level, from shapes with batch dimension."""
        dimensions = max(1, *(len(shape) - 2 for shape in [*student, *teacher]))
        maps = [shape for shape in student if len(shape) > 2]
        if dimensions > 2 or any(len(shape) < 2 for shape in [*student, *teacher]):
            raise ValueError(f"levels must be vectors, signals or maps, not {tuple(student)} and {tuple(teacher)}")
        if any(len(shape) - 2 not in (0, dimensions) for shape in [*student, *teacher]):
            raise ValueError("signals (batch, channels, length) and maps (batch, channels, height, width) do not mix")
        if any(deep[2:] > shallow[2:] for shallow, deep in zip(maps, maps[1:], strict=False)):
            raise ValueError("the pairs must run from shallow to deep, and a later map is larger: turn their order")
        channels = self.channels or min(512, student[-1][1])
        last = len(student) - 1
        self.fusions = nn.ModuleList(
            Fusion(own[1], channels, other[1], dimensions, fuses=level < last, kernel=3 if other[2:] else 1)
            for level, (own, other) in enumerate(zip(student, teacher, strict=True))
        )
        self.dimensions = dimensions

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The loss of all levels, shallow to deep, a scalar."""
        theirs = [self._as_map(maps) for maps in teacher]
        ours: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, maps, other in reversed(list(zip(self.fusions, student, theirs, strict=True))):
            result, deeper = fusion(self._as_map(maps), deeper, other.shape[2:])
            ours.append(result)
        return hcl_loss(ours[::-1], theirs)

    def _as_map(self, features: Tensor) -> Tensor:
        return features if features.ndim > 2 else features.reshape(*features.shape, *[1] * self.dimensions)
