"""The attention-based fusion of knowledge review: a level's features joined with those of all deeper levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.layers import CONVOLUTIONS, NORMS, check_normalisable
from kdlightning.losses.spatial import pool_to


class Fusion(nn.Module):
    """1×1 convolution to a common width, fusion with the deeper levels, 3×3 convolution to the teacher's width.

    With x the level's features in the common width and y the residual of the deeper ones, enlarged to x's size by
    repeating values: x ← a₁·x + a₂·y, where the two maps a = sigmoid(1×1 convolution of x and y, concatenated).

    Args:
        in_channels: the student's width at this level.
        channels: the common width.
        out_channels: the teacher's width.
        dimensions: 1 for signals, 2 for maps.
        fuses: False for the deepest level, which has nothing to be fused with.
        kernel: of the last convolution; 1 for vectors, of which a 3×3 one would see its padding.
    """

    def __init__(
        self, in_channels: int, channels: int, out_channels: int, dimensions: int, *, fuses: bool, kernel: int = 3
    ) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dimensions + 2], NORMS[dimensions + 2]
        self.reduce = nn.Sequential(convolution(in_channels, channels, 1, bias=False), norm(channels))
        last = convolution(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.expand = nn.Sequential(last, norm(out_channels))
        self.attention = convolution(2 * channels, 2, 1) if fuses else None
        for layer in (self.reduce[0], last):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]

    def forward(self, features: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The level's features in the teacher's width, and the residual for the next shallower level.

        Args:
            features: `(B, in_channels, …)`.
            deeper: the residual of the next deeper level; None for the deepest.
            size: the teacher's spatial size, to which the result is resized: repeated (nearest neighbour) where it is
                smaller, average-pooled where it is larger.

        Raises:
            ValueError: in training, a batch whose channels have a single value, which BatchNorm cannot normalise.
        """
        if self.training:
            check_normalisable("ReviewKD", features)
        fused = self.reduce(features)
        if self.attention is not None and deeper is not None:
            fused = self._fused(fused, deeper)
        fused = _resized(fused, size)
        return self.expand(fused), fused

    def _fused(self, own: Tensor, deeper: Tensor) -> Tensor:
        # A 1×1 convolution of both is the sum of one of each; the deeper one is done before it is enlarged.
        convolve: Any = F.conv1d if own.ndim == 3 else F.conv2d
        assert self.attention is not None
        for_own, for_deeper = self.attention.weight.chunk(2, 1)
        size = own.shape[2:]
        scores = convolve(own, for_own, self.attention.bias) + _enlarged(convolve(deeper, for_deeper), size)
        weights = scores.sigmoid()
        return own * weights[:, :1] + _enlarged(deeper, size) * weights[:, 1:]


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """A single position is left to broadcasting."""
    return maps if all(n == 1 for n in maps.shape[2:]) else _resized(maps, size)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    maps = pool_to(maps, [min(own, wanted) for own, wanted in zip(maps.shape[2:], size, strict=True)])
    return maps if list(maps.shape[2:]) == list(size) else F.interpolate(maps, list(size), mode="nearest")
