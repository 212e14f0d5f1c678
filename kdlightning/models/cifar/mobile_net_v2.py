"""MobileNetV2 for CIFAR."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from kdlightning.models.cifar.base import CifarNetwork, initialise
from kdlightning.models.residual import conv_bn_act, convolution

# Expansion (None: the network's), channels, blocks, stride; the groups that follow make a stage each.
_SETTING = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)
_STAGES = ((0, 1), (2,), (3, 4), (5, 6))
_LAYERS = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}


def _published_blocks() -> Iterator[tuple[str, str]]:
    """`blocks.GROUP.N` of published weights, and which block of which stage that is."""
    for stage, groups in enumerate(_STAGES):
        places = [(group, number) for group in groups for number in range(_SETTING[group][2])]
        for position, (group, number) in enumerate(places):
            yield rf"^blocks\.{group}\.{number}\.", f"stages.{stage}.{position}."


class CifarMobileNetV2(CifarNetwork):
    """Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, as CRD has it for 32×32 images.

    It departs from the paper's: the stem alone halves the size before the 16×16 map (the second group does not), the
    first block too has its 1×1 expansion, channels are not rounded to multiples of 8, activations are plain ReLUs, and
    the 1280 channels of the last layer are not narrowed.

    Taps: `stages.0` … `stages.3` are 16×16, 8×8, 4×4 and 2×2 maps; bottlenecks are linear, so nothing activates them.
    `tail.act` is the last map, `tail.act:input` the one before its ReLU.

    Args:
        num_classes: number of outputs.
        width: factor of all channels but the last 1280.
        expansion: T, how much wider blocks are inside.
        in_channels: channels of the input.
    """

    published_keys = {
        r"^conv1\.0\.": "stem.conv.",
        r"^conv1\.1\.": "stem.bn.",
        **dict(_published_blocks()),
        **{rf"\.conv\.{number}\.": f".{name}." for number, name in _LAYERS.items()},
        r"^conv2\.0\.": "tail.conv.",
        r"^conv2\.1\.": "tail.bn.",
        r"^classifier\.0\.": "fc.",
    }

    def __init__(self, num_classes: int, width: float = 0.5, expansion: int = 6, in_channels: int = 3) -> None:
        channels = int(32 * width)
        stem, stages = conv_bn_act(in_channels, channels, 3, 2), []
        for groups in _STAGES:
            blocks = []
            for group in groups:
                wider, base, count, stride = _SETTING[group]
                for number in range(count):
                    block = _Block(channels, int(base * width), wider or expansion, 1 if number else stride)
                    channels = int(base * width)
                    blocks.append(block)
            stages.append(nn.Sequential(*blocks))
        last = max(1280, int(1280 * width))
        super().__init__(num_classes, stem, stages, last, conv_bn_act(channels, last, 1))
        initialise(self, linear_std=0.01)


class _Block(nn.Module):
    """Widen, filter each channel by itself, narrow without activation; the input is added where shapes agree."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.conv1, self.bn1, self.act1 = convolution(in_channels, inside, 1), nn.BatchNorm2d(inside), nn.ReLU()
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(inside), nn.ReLU()
        self.conv3, self.bn3 = convolution(inside, channels, 1), nn.BatchNorm2d(channels)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(branch)))))
        return x + branch if self.adds else branch
