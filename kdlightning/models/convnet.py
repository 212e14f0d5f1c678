"""A small convolutional network for images and 1-D signals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.residual import CONVOLUTIONS, NORMS


class ConvNet(nn.Module):
    """Stages of (3-wide convolution, batch norm, ReLU) × depth, all but the first halving the size; a linear layer.

    Taps: `stages.0` … `stages.N` are the stages' maps, `pre_logits` the pooled vector.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the input.
        widths: channels of each stage.
        depth: convolutions in a stage.
        dimensions: 2 for images `(B, C, H, W)`, 1 for signals `(B, C, L)`.
        dropout: dropout before the linear layer.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32),
        depth: int = 1,
        dimensions: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dimensions not in (1, 2):
            raise ConfigurationError(f"ConvNet: dimensions must be 1 or 2, not {dimensions}")
        self.num_classes = num_classes
        self.stages = nn.Sequential()
        channels = in_channels
        for number, width in enumerate(widths):
            self.stages.append(conv_stage(channels, width, depth, 1 if number == 0 else 2, dimensions))
            channels = width
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if dimensions == 2 else nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.fc(self.dropout(self.flatten(self.pool(self.stages(x)))))


def conv_stage(in_channels: int, width: int, depth: int, stride: int, dimensions: int = 2) -> nn.Sequential:
    """`depth` times (3-wide convolution, batch norm, ReLU), the first with a stride."""
    convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
    layers: list[nn.Module] = []
    for number in range(depth):
        step = stride if number == 0 else 1
        layers += [
            convolution(in_channels if number == 0 else width, width, 3, stride=step, padding=1, bias=False),
            norm(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
