"""Layers by the number of dimensions of what they read: vectors `(B, C)`, signals `(B, C, L)`, maps `(B, C, H, W)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d}
TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d}
NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def pointwise(rank: int, in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Module:
    """A 1×1 convolution; a linear layer for vectors."""
    if rank == 2:
        return nn.Linear(in_channels, out_channels, bias=bias)
    return CONVOLUTIONS[rank](in_channels, out_channels, kernel_size=1, bias=bias)


def check_normalisable(what: str, features: Tensor) -> None:
    """Raises ValueError for channels of a single value, which BatchNorm cannot normalise in training."""
    if features.numel() == features.shape[1]:
        raise ValueError(
            f"{what} normalises over the batch and cannot train on a single sample of "
            f"shape {tuple(features.shape[1:])}: use drop_last=True or a larger batch"
        )
