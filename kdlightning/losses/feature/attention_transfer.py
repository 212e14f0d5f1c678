"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.maps import common_maps
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.spatial import Layout


@full_precision
def attention_transfer_loss(
    student: Tensor, teacher: Tensor, *, power: float = 2, layout: Layout = "channels_first"
) -> Tensor:
    """Attention transfer of one stage: the mean over samples and positions of (aˢ − aᵗ)².

    a is the map mean_c |F_c|^power, flattened and divided by its L2 norm. Maps of different sizes are brought together
    by average-pooling the larger; the numbers of channels may differ. Zagoruyko & Komodakis, "Paying More Attention to
    Attention", ICLR 2017.

    This mean form is the authors' code, RepDistiller's and mdistiller's (weight 1000, summed over the stages). The
    paper's equation is β/2 · Σ_b ‖aˢ_b − aᵗ_b‖₂, summed; torchdistill's mode "paper" sums over channels and divides the
    norms by B; KD_Lib sums over channels too.

    Args:
        student: `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`.
        teacher: as many dimensions; no gradient flows into it.
        power: p > 0; 2 in paper and code.
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better. It is 1/(H·W) of the mean squared distance of the unit vectors, so its scale
        depends on the map's size.
    """
    check_positive("power", power)
    student, teacher = common_maps("attention transfer", student, teacher, layout)
    return F.mse_loss(_attention(student, power), _attention(teacher, power))


def _attention(maps: Tensor, power: float) -> Tensor:
    energy: Tensor = _MeanSquare.apply(maps) if power == 2 else maps.abs().pow(power).mean(1).clamp(max=_bound(maps))
    return F.normalize(energy.flatten(1), dim=1)


def _bound(maps: Tensor) -> float:
    """The norm squares energies once more: beyond this one it would be infinite, and the gradient NaN."""
    return torch.finfo(maps.dtype).max ** 0.45


class _MeanSquare(torch.autograd.Function):
    """The mean of squares over the channels, at most the bound. One pass over the map backward instead of three."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        return maps.square().mean(1).clamp_(max=_bound(maps))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        return maps * (upstream * (2 / maps.shape[1])).unsqueeze(1)


class AttentionTransfer(FeatureLoss):
    """Attention transfer; see `attention_transfer_loss`. It needs no adapter: attention maps have one channel.

    Reference code sums it over the last three or four stages with weight 1000 beside cross-entropy 1.
    """

    def __init__(self, power: float = 2) -> None:
        """
        Args:
            power: p in mean_c |F_c|^p.
        """
        super().__init__()
        check_positive("power", power)
        self.power = power

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the maps lose their channels before they are compared."""

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one stage, a scalar."""
        return attention_transfer_loss(student, teacher, power=self.power)


AT = AttentionTransfer
