"""Blocks of residual networks for images and signals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def convolution(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, *, dimensions: int = 2
) -> nn.Module:
    """A convolution without bias that keeps the size but for its stride; for odd kernels."""
    padding = kernel_size // 2
    return CONVOLUTIONS[dimensions](in_channels, channels, kernel_size, stride, padding, bias=False)


def conv_bn_act(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, *, dimensions: int = 2
) -> nn.Sequential:
    """`conv`, `bn` and `act` in their order."""
    layers = OrderedDict[str, nn.Module](
        conv=convolution(in_channels, channels, kernel_size, stride, dimensions=dimensions),
        bn=NORMS[dimensions](channels),
        act=nn.ReLU(),
    )
    return nn.Sequential(layers)


def stage_of(blocks: Iterable[nn.Module]) -> nn.Sequential:
    """Blocks `0`, `1`, … and a ReLU `act`, which the last of the blocks leaves to its stage.

    So `stages.N.act:input` is the map before the activation, whatever the stage's depth.
    """
    stage = nn.Sequential(*blocks)
    stage.add_module("act", nn.ReLU())
    return stage


class Residual(nn.Module):
    """Adds a branch, which a subclass defines, to a shortcut; a ReLU after the sum unless the stage has it.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the shortcut, which is a 1×1 projection with BatchNorm where shapes change.
        last: leave the ReLU to the stage.
        dimensions: 2 for images, 1 for signals.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, last: bool, dimensions: int = 2) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            project = convolution(in_channels, channels, 1, stride, dimensions=dimensions)
            self.shortcut = nn.Sequential(project, NORMS[dimensions](channels))
        self.act = None if last else nn.ReLU()

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, …)`."""
        x = self.branch(x) + (x if self.shortcut is None else self.shortcut(x))
        return x if self.act is None else self.act(x)


class BasicBlock(Residual):
    """Two convolutions with BatchNorm beside a shortcut.

    Args:
        in_channels: channels of the input.
        channels: channels of the block.
        stride: of the first convolution.
        last: leave the ReLU after the sum to the stage.
        kernel_size: of both convolutions.
        dimensions: 2 for images, 1 for signals.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        last: bool = False,
        kernel_size: int = 3,
        dimensions: int = 2,
    ) -> None:
        super().__init__(in_channels, channels, stride, last, dimensions)
        self.conv1 = convolution(in_channels, channels, kernel_size, stride, dimensions=dimensions)
        self.bn1 = NORMS[dimensions](channels)
        self.act1 = nn.ReLU()
        self.conv2 = convolution(channels, channels, kernel_size, dimensions=dimensions)
        self.bn2 = NORMS[dimensions](channels)

    def branch(self, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU, convolution, BatchNorm."""
        return self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))


class Bottleneck(Residual):
    """1×1, 3×3 and 1×1 convolutions with BatchNorm, four times as wide outside as inside; the 3×3 one has the stride.

    Args:
        in_channels: channels of the input.
        channels: channels inside.
        stride: of the 3×3 convolution.
        last: leave the ReLU after the sum to the stage.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, last: bool = False) -> None:
        outside = channels * self.expansion
        super().__init__(in_channels, outside, stride, last)
        self.conv1, self.bn1, self.act1 = convolution(in_channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.bn2 = convolution(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.conv3, self.bn3 = convolution(channels, outside, 1), nn.BatchNorm2d(outside)

    def branch(self, x: Tensor) -> Tensor:
        """Narrow, filter, widen."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.act2(self.bn2(self.conv2(x)))))
