"""Early exits: classifiers that begin inside another network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.layers import CONVOLUTIONS, NORMS, pointwise
from kdlightning.losses.spatial import pool_to, position_mean


class Bottleneck(nn.Module):
    """Brings a map to the size and width of another: 1×1, strided and 1×1 convolution, each with BatchNorm and ReLU.

    The strided convolution has the ratio of the two sizes, rounded down, as kernel and stride; what is left of the
    difference is pooled. A map that becomes a vector is not strided but averaged at the end. Vectors have linear
    layers.

    Args:
        shape: of what it reads, channels first, with the batch: `(B, C)`, `(B, C, L)` or `(B, C, H, W)`.
        target: of what it gives; as many dimensions, or a vector.
        factor: how many times narrower than the target it is inside.
        relu: whether it ends with a ReLU.
    """

    def __init__(self, shape: Sequence[int], target: Sequence[int], factor: int = 4, relu: bool = True) -> None:
        super().__init__()
        if len(target) not in (2, len(shape)):
            raise ConfigurationError(
                f"an exit cannot bring {tuple(shape[1:])} to {tuple(target[1:])}: name a deepest tap with as many "
                "dimensions as the exit's, or one that is a vector"
            )
        self.size = list(target[2:])
        self.kernel = [max(own // wanted, 1) for own, wanted in zip(shape[2:], self.size, strict=False)]
        rank, width, inside = len(shape), target[1], max(target[1] // factor, 1)
        norm = NORMS[rank]
        reducing = (
            CONVOLUTIONS[rank](inside, inside, self.kernel, stride=self.kernel, bias=False) if self.size else None
        )
        self.layers = nn.Sequential(
            *(pointwise(rank, shape[1], inside, bias=False), norm(inside), nn.ReLU()),
            *(reducing or pointwise(rank, inside, inside, bias=False), norm(inside), nn.ReLU()),
            *(pointwise(rank, inside, width, bias=False), norm(width)),
            *((nn.ReLU(),) if relu else ()),
        )

    def forward(self, features: Tensor) -> Tensor:
        """The map, or the vector."""
        strides = self.kernel or [1] * (features.ndim - 2)
        places = math.prod(size // stride for size, stride in zip(features.shape[2:], strides, strict=True))
        if self.training and len(features) * places == 1:
            raise ConfigurationError(
                "an exit normalises over the batch and cannot train on a single sample: use drop_last=True or a larger "
                "batch"
            )
        found = self.layers(features)
        return pool_to(found, self.size) if self.size else position_mean(found)


class PooledClassifier(nn.Module):
    """The mean over all positions and a linear layer.

    Args:
        channels: width of what it reads, channels first.
        num_classes: number of outputs.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.fc(position_mean(features))


class Exit(PooledClassifier):
    """An exit of self-distillation: a bottleneck to the size and width of the deepest map, pooling, a linear layer.

    Taps: `features` is the map that stands beside the deepest one, `pre_logits` its average.

    Args:
        shape: of what it reads, channels first, with the batch.
        deepest: shape of the network's deepest map or vector.
        num_classes: number of outputs.
        relu: whether the features end with a ReLU, as the deepest map of most convolutional networks does.
    """

    def __init__(self, shape: Sequence[int], deepest: Sequence[int], num_classes: int, relu: bool = True) -> None:
        super().__init__(deepest[1], num_classes)
        self.features = Bottleneck(shape, deepest, relu=relu)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return super().forward(self.features(features))
