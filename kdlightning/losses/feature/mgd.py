"""Masked generative distillation: the teacher's features are generated from a part of the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.layers import CONVOLUTIONS
from kdlightning.losses.numerics import check_share, full_precision
from kdlightning.losses.spatial import pool_larger

Masks = Literal["channels", "positions"]


@full_precision
def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Masked generative distillation: Σ (G − Fᵗ)² / B, the sum over all elements of a sample, averaged over the batch.

    Yang et al., "Masked Generative Distillation", ECCV 2022. The authors' code and mmrazor multiply by α: 7e-5 for
    ImageNet classifiers, 2e-5 for one-stage and 5e-7 for two-stage detectors, in line with a sum over so many elements.

    Args:
        generated: what a generator makes of the masked features of the student (see `MGD`), `(B, …)`.
        teacher: the same shape; no gradient flows into it.

    Returns:
        A scalar; float32 or better.
    """
    if generated.shape != teacher.shape:
        raise ValueError(
            f"generated and teacher features must have one shape: {tuple(generated.shape)} and {tuple(teacher.shape)}"
        )
    return F.mse_loss(generated, teacher.detach(), reduction="sum") / len(generated)


class MGD(FeatureLoss):
    """Masked generative distillation; see `mgd_loss`.

    A share of the student's features is set to zero in each step, and a generator, two 3×3 convolutions with a ReLU
    between them (kernel 3 for `(B, C, L)` and tokens, linear layers for vectors), makes the teacher's features of the
    rest. It is trained with the student and saved. A student of another width gets a 1×1 convolution as adapter.

    Masks come from torch's generator on the tensors' device, so the seed of a step makes them again. In evaluation mode
    nothing is masked. Default weight 7e-5, the authors' for classifiers on ImageNet: the loss sums over the elements
    of a sample, and other sizes need others (they have 1.2e-3 on CIFAR-100).
    """

    default_weights = {"mgd": 7e-5}

    def __init__(self, mask_ratio: float = 0.15, masks: Masks = "channels") -> None:
        """
        Args:
            mask_ratio: how much is set to zero; 0.15 in the paper for classifiers (the authors' docstring says 0.5, the
                code 0.15), 0.65 for one-stage and 0.45 for two-stage detectors, 0.75 for segmentation.
            masks: "channels" drops whole channels of a sample, as the paper does for classifiers; "positions" drops
                positions with all their channels, as it does for dense prediction.
        """
        super().__init__()
        check_share("mask_ratio", mask_ratio, one_allowed=False)
        if masks not in ("channels", "positions"):
            raise ValueError(f"masks must be channels or positions, not {masks!r}")
        self.mask_ratio = mask_ratio
        self.masks = masks

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The generator."""
        (shape,) = teacher
        if len(shape) == 2 and self.masks == "positions":
            raise ValueError("vectors have no positions: set masks to channels")
        self.generator = nn.Sequential(_layer(shape), nn.ReLU(inplace=True), _layer(shape))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        student, teacher = pool_larger(student, teacher)
        return mgd_loss(self.generator(self._masked(student)), teacher)

    def _masked(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        samples, channels, *sizes = features.shape
        kept = (samples, channels, *(1 for _ in sizes)) if self.masks == "channels" else (samples, 1, *sizes)
        return features * (torch.rand(kept, device=features.device) >= self.mask_ratio)


def _layer(shape: Shape) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[1])
    if len(shape) not in CONVOLUTIONS:
        raise ValueError(f"MGD needs vectors or maps (batch, channels, …), not shape {tuple(shape)}")
    return CONVOLUTIONS[len(shape)](shape[1], shape[1], kernel_size=3, padding=1)
