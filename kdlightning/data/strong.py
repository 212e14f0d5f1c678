"""Stronger augmentation, for further views of samples that lie in memory; whole batches at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlightning.data.arrays import CropFlip
from kdlightning.data.seeding import mix_tensors


class StrongImages:
    """A crop and a flip as of the first view, then other contrast and brightness, then a square cut out.

    Stands for RandAugment with a cut-out, which methods with a weak and a strong view use: everything is drawn for each
    sample from its own seed, as `CropFlip` does, without a loop over samples.

    Args:
        padding: of the crop, in pixels.
        flip: mirror half of the samples.
        scale: what pixels are divided by to lie between 0 and 1.
        contrast: differences from an image's mean are multiplied by 1 ± this, at most.
        brightness: added to all pixels of an image, at most, of the range from 0 to 1.
        cutout: side of the square, at most, as a share of the image's shorter side. The image's mean fills it.
    """

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        scale: float = 255,
        contrast: float = 0.6,
        brightness: float = 0.3,
        cutout: float = 0.5,
    ) -> None:
        self.shift = CropFlip(padding, flip)
        self.scale = scale
        self.contrast = contrast
        self.brightness = brightness
        self.cutout = cutout

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augments `(B, C, H, W)` of any dtype; gives floats from 0 to 1 for integers, else the units that came."""
        integers = not images.is_floating_point()
        pixels = self.shift(images, seeds).float() / self.scale
        mean = pixels.mean((2, 3), keepdim=True)
        contrast = _around(seeds, 3, 1.0, self.contrast)
        brightness = _around(seeds, 4, 0.0, self.brightness)
        pixels = ((pixels - mean).mul_(contrast).add_(mean + brightness)).clamp_(0, 1)
        height, width = images.shape[2:]
        side = _uniform(seeds, 5) * self.cutout * min(height, width)
        rows = _inside(height, _uniform(seeds, 6), side)[:, None, :, None]
        columns = _inside(width, _uniform(seeds, 7), side)[:, None, None, :]
        pixels = torch.where(rows & columns, mean, pixels)
        return pixels if integers else pixels * self.scale


class StrongSignals:
    """A shift along time, another amplitude, and white noise.

    Args:
        shift: steps in either direction, at most, as a share of the signal's length; its first or last value fills the
            gap.
        scale: the signal is multiplied by 1 ± this, at most.
        noise: deviation of the noise, as a share of the signal's own.
    """

    def __init__(self, shift: float = 0.1, scale: float = 0.3, noise: float = 0.2) -> None:
        self.shift = shift
        self.scale = scale
        self.noise = noise

    def __call__(self, signals: Tensor, seeds: Tensor) -> Tensor:
        """Augments `(B, C, L)` floats."""
        batch, channels, length = signals.shape
        steps = (_around(seeds, 0, 0.0, self.shift).view(batch, 1) * length).round().long()
        places = (torch.arange(length) - steps).clamp_(0, length - 1)
        moved = signals.gather(2, places[:, None].expand(batch, channels, length))
        # Numbers counted from the sample's seed: the noise of a sample is the same in any batch.
        numbers = mix_tensors(seeds[:, None], 2, torch.arange(channels * length))
        noise = _normal(numbers).view(batch, channels, length).to(signals.dtype)
        deviation = signals.std((1, 2), correction=0, keepdim=True)
        scale = _around(seeds, 1, 1.0, self.scale).view(batch, 1, 1)
        return (moved * scale).add_(noise * (self.noise * deviation))


def _uniform(seeds: Tensor, stream: int) -> Tensor:
    """A number from 0 to 1 for each seed."""
    return _fraction(mix_tensors(seeds, stream))


def _around(seeds: Tensor, stream: int, centre: float, reach: float) -> Tensor:
    """A number within `reach` of the centre for each seed, `(B, 1, 1, 1)`."""
    return (centre + reach * (2 * _uniform(seeds, stream) - 1)).view(-1, 1, 1, 1)


def _fraction(numbers: Tensor) -> Tensor:
    """Mixed integers as float32 from 0 to 1."""
    return (numbers >> 39).float() / 2**24


def _normal(numbers: Tensor) -> Tensor:
    """Mixed integers as normal numbers."""
    # 23 bits and a half are exact in float32, and never 0 or 1.
    return torch.erfinv(2 * ((numbers >> 40).float() + 0.5) / 2**23 - 1) * math.sqrt(2)


def _inside(length: int, centre: Tensor, side: Tensor) -> Tensor:
    """`(B, length)`: which places lie within half a side of a centre given as a share of the length."""
    return (torch.arange(length) + 0.5 - centre[:, None] * length).abs() < side[:, None] / 2
