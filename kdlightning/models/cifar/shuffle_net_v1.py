"""ShuffleNet for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.cifar.base import CifarNetwork
from kdlightning.models.residual import conv_bn_act, stage_of


class CifarShuffleNetV1(CifarNetwork):
    """Zhang et al., "ShuffleNet", 2018, as CRD has it for 32×32 images: a 1×1 stem that keeps the size, no pooling.

    Taps: `stages.N` is after the last ReLU of a stage (16×16, 8×8, 4×4), `stages.N.act:input` before it.

    Args:
        num_classes: number of outputs.
        groups: of the 1×1 convolutions; widths must be multiples of four times as many.
        widths: channels of the stages.
        blocks: blocks in each stage.
        in_channels: channels of the input.
    """

    published_keys = {
        r"^conv1\.": "stem.conv.",
        r"^bn1\.": "stem.bn.",
        r"^layer1\.": "stages.0.",
        r"^layer2\.": "stages.1.",
        r"^layer3\.": "stages.2.",
        r"^linear\.": "fc.",
    }

    def __init__(
        self,
        num_classes: int,
        groups: int = 3,
        widths: Sequence[int] = (240, 480, 960),
        blocks: Sequence[int] = (4, 8, 4),
        in_channels: int = 3,
    ) -> None:
        if len(widths) != len(blocks):
            raise ConfigurationError(f"CifarShuffleNetV1: {len(widths)} widths and {len(blocks)} blocks do not fit")
        channels, stages = 24, []
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            # The very first convolution has few channels and is not grouped.
            made = [_Block(channels, width - channels, 2, 1 if number == 0 else groups, groups, count == 1)]
            made += [_Block(width, width, 1, groups, groups, position == count - 1) for position in range(1, count)]
            stages.append(stage_of(made))
            channels = width
        super().__init__(num_classes, conv_bn_act(in_channels, 24, 1), stages, channels)


class _Block(nn.Module):
    """Grouped 1×1, shuffle, 3×3 of each channel, grouped 1×1; added to the input, or put beside it with stride 2."""

    def __init__(self, in_channels: int, channels: int, stride: int, first: int, groups: int, last: bool) -> None:
        super().__init__()
        inside = channels // 4
        self.conv1, self.bn1 = nn.Conv2d(in_channels, inside, 1, groups=first, bias=False), nn.BatchNorm2d(inside)
        self.act1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first) if first > 1 else None
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(inside), nn.ReLU()
        self.conv3, self.bn3 = nn.Conv2d(inside, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.act = None if last else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        if self.shuffle is not None:
            branch = self.shuffle(branch)
        branch = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(branch)))))
        x = branch + x if self.pool is None else torch.cat([branch, self.pool(x)], 1)
        return x if self.act is None else self.act(x)
