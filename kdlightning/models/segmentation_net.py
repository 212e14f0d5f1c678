"""A small fully convolutional network for segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from kdlightning.errors import ConfigurationError
from kdlightning.models.convnet import conv_stage


class SegmentationNet(nn.Module):
    """Encoder stages as in `ConvNet`, a top-down path that joins their maps, and a classifier of each pixel.

    Each stage's map is brought to `width` channels by a 1×1 convolution; from the deepest on, it is enlarged and added
    to the one before (Lin et al., "Feature Pyramid Networks", CVPR 2017). The logits have the size of the first stage's
    map: the image's for `stride=1`, else that divided by the stride (`Segmentation` enlarges them).

    Taps: `stages.0` … `stages.N` are the stages' maps, `neck` the joined map that the classifier reads, `logits`.

    Args:
        num_classes: number of classes, the background included.
        in_channels: channels of the input.
        widths: channels of each stage; all but the first halve the size.
        depth: convolutions in a stage.
        width: channels of the joined map.
        stride: of the first stage.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = (8, 16, 32),
        depth: int = 1,
        width: int = 16,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if not widths:
            raise ConfigurationError("SegmentationNet: widths is empty; give the channels of at least one stage")
        self.num_classes = num_classes
        self.stages = nn.ModuleList()
        self.laterals = nn.ModuleList()
        channels = in_channels
        for number, own in enumerate(widths):
            self.stages.append(conv_stage(channels, own, depth, 2 if number else stride))
            self.laterals.append(nn.Conv2d(own, width, 1))
            channels = own
        self.neck = conv_stage(width, width, 1, 1)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes, H / stride, W / stride)`, rounded up."""
        maps = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        joined = maps.pop()
        while maps:
            finer = maps.pop()
            joined = finer + interpolate(joined, size=finer.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.neck(joined))
