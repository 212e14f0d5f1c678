"""VGG without its large linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.cifar.base import CifarNetwork, initialise

WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(CifarNetwork):
    """Simonyan & Zisserman, "Very Deep Convolutional Networks", 2015, with BatchNorm and one linear layer, for CIFAR.

    Five stages of 3×3 convolutions; the second to the fourth begin with max pooling (the fifth keeps the fourth's 4×4
    map of a 32×32 image), the map of the fifth is averaged.

    Taps: `stages.N` is after the last ReLU of a stage and before the next pooling, `stages.N.act:input` before the ReLU
    (the output of the stage's last BatchNorm).

    Args:
        num_classes: number of outputs.
        blocks: convolutions in each of the five stages; two each for VGG-13.
        in_channels: channels of the input.
    """

    published_keys = {r"^block(\d)\.": r"stages.\1.", r"^classifier\.": "fc."}

    def __init__(self, num_classes: int, blocks: Sequence[int] = (2, 2, 2, 2, 2), in_channels: int = 3) -> None:
        if len(blocks) != len(WIDTHS) or min(blocks) < 1:
            raise ConfigurationError(f"CifarVGG: blocks must be five numbers of at least 1, not {list(blocks)}")
        channels, stages = in_channels, []
        for number, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            stages.append(_stage(channels, width, count, pools=0 < number < 4))
            channels = width
        super().__init__(num_classes, None, stages, channels)
        initialise(self, linear_std=0.01)


def _stage(in_channels: int, width: int, count: int, pools: bool) -> nn.Sequential:
    stage = nn.Sequential()
    if pools:
        stage.add_module("pool", nn.MaxPool2d(2))
    for position in range(count):
        first = in_channels if position == 0 else width
        layers = [nn.Conv2d(first, width, 3, padding=1), nn.BatchNorm2d(width)]
        for number, layer in enumerate(layers):
            stage.add_module(str(3 * position + number), layer)
        last = position == count - 1
        stage.add_module("act" if last else str(3 * position + 2), nn.ReLU())
    return stage
