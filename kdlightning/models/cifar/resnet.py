"""Residual networks for CIFAR: the thin ones of three stages, and those of ImageNet with a 3×3 stem."""

from __future__ import annotations

from collections.abc import Sequence

from kdlightning.errors import ConfigurationError
from kdlightning.models.cifar.base import CifarNetwork, initialise
from kdlightning.models.residual import BasicBlock, Bottleneck, conv_bn_act, stage_of


class CifarResNet(CifarNetwork):
    """He et al., "Deep Residual Learning for Image Recognition", 2016, as the distillation literature has it.

    Stages of residual blocks on 32×32 images, all but the first halving the size. Where shapes change the shortcut is a
    1×1 projection with BatchNorm (the paper's option B; its own CIFAR networks pad with zeros, which costs no weights).
    The `x4` networks have stages four times and a stem twice as wide.

    Taps: `stages.N` is after the last ReLU of a stage, `stages.N.act:input` before it; `stages.N.K.bn2` (`bn3` of
    bottlenecks) is the last BatchNorm of block K, before the shortcut is added.

    Args:
        num_classes: number of outputs.
        blocks: blocks in each stage; three for depth 20.
        widths: channels of the stem and of each stage (inside the blocks, for bottlenecks).
        bottleneck: 1×1, 3×3, 1×1 blocks of four times the width outside, as in ResNet-50.
        in_channels: channels of the input.
    """

    published_keys = {
        r"^conv1\.": "stem.conv.",
        r"^bn1\.": "stem.bn.",
        r"^layer1\.": "stages.0.",
        r"^layer2\.": "stages.1.",
        r"^layer3\.": "stages.2.",
        r"^layer4\.": "stages.3.",
        r"\.downsample\.": ".shortcut.",
        r"^linear\.": "fc.",
    }

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 16, 32, 64),
        bottleneck: bool = False,
        in_channels: int = 3,
    ) -> None:
        if len(widths) != len(blocks) + 1:
            raise ConfigurationError(
                f"CifarResNet: widths must name the stem and each of {len(blocks)} stages, got {list(widths)}"
            )
        block = Bottleneck if bottleneck else BasicBlock
        channels, stages = widths[0], []
        for number, (count, width) in enumerate(zip(blocks, widths[1:], strict=True)):
            made = []
            for position in range(count):
                stride = 2 if number and position == 0 else 1
                made.append(block(channels, width, stride, position == count - 1))
                channels = width * block.expansion
            stages.append(stage_of(made))
        super().__init__(num_classes, conv_bn_act(in_channels, widths[0], 3), stages, channels)
        initialise(self)
