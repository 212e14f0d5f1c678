"""ShuffleNetV2 for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.cifar.base import CifarNetwork
from kdlightning.models.residual import conv_bn_act, convolution


class CifarShuffleNetV2(CifarNetwork):
    """Ma et al., "ShuffleNet V2", 2018, as CRD has it for 32×32 images: a 1×1 stem that keeps the size, no pooling.

    Taps: `stages.N` is after the last shuffle of a stage (16×16, 8×8, 4×4). Activations are inside the branches, so no
    tensor is a whole map before them; `stages.N.K.bn3` is that of the convolved half in block K. `tail.act:input` is
    the last map before its ReLU.

    Args:
        num_classes: number of outputs.
        widths: channels of the stages (even) and of the tail; the paper's 1× network by default.
        blocks: blocks in each stage, the first of which halves the size.
        in_channels: channels of the input.
    """

    published_keys = {
        r"^conv1\.": "stem.conv.",
        r"^bn1\.": "stem.bn.",
        r"^layer1\.": "stages.0.",
        r"^layer2\.": "stages.1.",
        r"^layer3\.": "stages.2.",
        r"^conv2\.": "tail.conv.",
        r"^bn2\.": "tail.bn.",
        r"^linear\.": "fc.",
    }

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (116, 232, 464, 1024),
        blocks: Sequence[int] = (4, 8, 4),
        in_channels: int = 3,
    ) -> None:
        if len(widths) != len(blocks) + 1 or any(width % 2 for width in widths):
            raise ConfigurationError(
                f"CifarShuffleNetV2: widths must be even, one for each of {len(blocks)} stages and one for the tail, "
                f"not {list(widths)}"
            )
        channels, stages = 24, []
        for width, count in zip(widths, blocks, strict=False):
            stages.append(nn.Sequential(_Halving(channels, width), *(_Block(width) for _ in range(count - 1))))
            channels = width
        tail = conv_bn_act(channels, widths[-1], 1)
        super().__init__(num_classes, conv_bn_act(in_channels, 24, 1), stages, widths[-1], tail)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class _Block(nn.Module):
    """Convolves the second half of the channels, then shuffles both halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1, self.act1 = convolution(half, half, 1), nn.BatchNorm2d(half), nn.ReLU()
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3, self.act3 = convolution(half, half, 1), nn.BatchNorm2d(half), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, dim=1)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act3(self.bn3(self.conv3(self.bn2(self.conv2(x)))))
        return self.shuffle(torch.cat([kept, x], 1))


class _Halving(nn.Module):
    """Two branches of stride 2 on all channels, one of two and one of three convolutions, then shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _depthwise(in_channels, 2), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2, self.act2 = convolution(in_channels, half, 1), nn.BatchNorm2d(half), nn.ReLU()
        self.conv3, self.bn3, self.act3 = convolution(in_channels, half, 1), nn.BatchNorm2d(half), nn.ReLU()
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5, self.act5 = convolution(half, half, 1), nn.BatchNorm2d(half), nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        short = self.act2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = self.act3(self.bn3(self.conv3(x)))
        long = self.act5(self.bn5(self.conv5(self.bn4(self.conv4(long)))))
        return self.shuffle(torch.cat([short, long], 1))
