"""A residual network for signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.residual import BasicBlock, conv_bn_act, stage_of

SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "small": ((16, 32), 1),
    "medium": ((32, 64, 128), 2),
    "large": ((64, 128, 256), 3),
}
"""Widths of the stages, and blocks in each, by size."""


class ResNet1d(nn.Module):
    """Stages of residual blocks on signals `(B, C, L)`, all but the first halving the length; a linear layer.

    Taps: `stem`; `stages.N` is after the last ReLU of a stage, `stages.N.act:input` before it; `pre_logits` is the
    pooled vector.

    Args:
        num_classes: number of outputs.
        size: `small` (widths 16 and 32, one block a stage), `medium` (32, 64, 128, two blocks) or `large` (64, 128,
            256, three blocks).
        in_channels: channels of the input.
        widths: channels of each stage instead of the size's.
        depth: blocks in a stage instead of the size's.
        kernel_size: of the convolutions, odd.
        dropout: dropout before the linear layer.
    """

    def __init__(
        self,
        num_classes: int,
        size: Literal["small", "medium", "large"] = "medium",
        in_channels: int = 1,
        widths: Sequence[int] | None = None,
        depth: int | None = None,
        kernel_size: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ConfigurationError(f"ResNet1d has no size {size!r}{nearest(str(size), SIZES)}")
        if kernel_size % 2 == 0:
            raise ConfigurationError(f"ResNet1d: kernel_size must be odd, not {kernel_size}")
        widths = SIZES[size][0] if widths is None else tuple(widths)
        depth = SIZES[size][1] if depth is None else depth
        self.num_classes = num_classes
        self.stem = conv_bn_act(in_channels, widths[0], kernel_size, dimensions=1)
        self.stages = nn.Sequential()
        channels = widths[0]
        for number, width in enumerate(widths):
            blocks = []
            for position in range(depth):
                stride = 2 if number and position == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, position == depth - 1, kernel_size, dimensions=1))
                channels = width
            self.stages.append(stage_of(blocks))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.fc(self.dropout(self.flatten(self.pool(self.stages(self.stem(x))))))

    def get_classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self.fc
