"""Wide residual networks."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.cifar.base import CifarNetwork, initialise
from kdlightning.models.residual import convolution


class CifarWideResNet(CifarNetwork):
    """Zagoruyko & Komodakis, "Wide Residual Networks", 2016: three stages of blocks that activate before they convolve.

    Taps: `stages.N` is the sum of a stage's last block, which nothing has activated yet; the BatchNorm and the ReLU
    that follow it are `stages.1.0.bn1` and `stages.1.0.act1` after stage 0, `stages.2.0.bn1` and `stages.2.0.act1`
    after stage 1, `tail.bn` and `tail.act` after stage 2.

    Args:
        num_classes: number of outputs.
        depth: 6n + 4 for n blocks in a stage.
        width: factor k of the stages' channels 16, 32 and 64.
        dropout: dropout between the two convolutions of a block.
        in_channels: channels of the input.
    """

    published_keys = {
        r"^conv1\.": "stem.",
        r"^block1\.layer\.": "stages.0.",
        r"^block2\.layer\.": "stages.1.",
        r"^block3\.layer\.": "stages.2.",
        r"\.convShortcut\.": ".shortcut.",
        r"^bn1\.": "tail.bn.",
    }

    def __init__(
        self, num_classes: int, depth: int = 16, width: int = 2, dropout: float = 0.0, in_channels: int = 3
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ConfigurationError(f"CifarWideResNet: depth must be 6n + 4, such as 16, 28 or 40, not {depth}")
        channels, stages = 16, []
        for number in range(3):
            wide = 16 * width * 2**number
            blocks = [_Block(channels, wide, 2 if number else 1, dropout)]
            blocks += [_Block(wide, wide, 1, dropout) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = wide
        tail = nn.Sequential(OrderedDict[str, nn.Module](bn=nn.BatchNorm2d(channels), act=nn.ReLU()))
        super().__init__(num_classes, convolution(in_channels, 16, 3), stages, channels, tail)
        initialise(self)
        nn.init.zeros_(self.fc.bias)


class _Block(nn.Module):
    """BatchNorm, ReLU and convolution, twice, beside a shortcut; a projection starts from the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn2, self.act2 = nn.BatchNorm2d(channels), nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = convolution(channels, channels, 3)
        self.shortcut = None if in_channels == channels else convolution(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        branch = self.act2(self.bn2(self.conv1(active)))
        if self.dropout is not None:
            branch = self.dropout(branch)
        return self.conv2(branch) + (x if self.shortcut is None else self.shortcut(active))
