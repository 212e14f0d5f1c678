"""Images and signals that fit into memory, loaded and augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from kdlightning.data.seeding import RANDOM_SOURCES, mix_tensors


class CropFlip:
    """Zero padding, a random crop back to the old size, and a random horizontal flip; whole batches at once.

    Every sample's offsets come from its own seed, so a view of it is the same in any batch.

    Args:
        padding: pixels on each side; 4 in the literature of CIFAR.
        flip: mirror half of the samples.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augments `(B, C, H, W)` of any dtype; `seeds` `(B,)` int64."""
        batch, channels, height, width = images.shape
        reach = 2 * self.padding + 1
        down = mix_tensors(seeds, 0) % reach
        right = mix_tensors(seeds, 1) % reach
        across = torch.arange(width).expand(batch, width)
        if self.flip:
            across = torch.where((mix_tensors(seeds, 2) % 2 == 1)[:, None], width - 1 - across, across)
        padded = pad(images, (self.padding,) * 4)
        rows = down[:, None] + torch.arange(height)
        pixels = rows[:, :, None] * padded.shape[-1] + (right[:, None] + across)[:, None, :]
        pixels = pixels.view(batch, 1, height * width).expand(batch, channels, height * width)
        return padded.flatten(2).gather(2, pixels).view_as(images)


class ArrayData(Dataset):
    """Samples of one array, normalised on the way out.

    Args:
        inputs: `(N, C, H, W)` or `(N, C, L)`, uint8 or float.
        targets: `(N,)` int64 labels, or float values `(N,)` or `(N, A)`.
        mean: of each channel, in the units of `inputs` divided by `scale`.
        std: of each channel.
        scale: what `inputs` are divided by: 255 for uint8 pixels, 1 for floats that are ready.
        augment: called with a batch of raw inputs and the samples' seeds; None shows the data as they are.
        transform: instead of `augment`: called with one raw sample `(C, H, W)`, as torchvision's are. It gives either
            uint8 pixels or floats from 0 to 1; both are normalised after it.
        rows: which samples of the array, in order; all by default.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        scale: float = 1.0,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.augment = augment
        self.transform = transform
        self.rows = torch.arange(len(inputs)) if rows is None else rows
        channels = (-1,) + (1,) * (inputs.dim() - 2)
        self._factor = 1 / torch.tensor(std, dtype=torch.float32).view(channels)
        self._raw_factor = self._factor / scale
        self._offset = -(torch.tensor(mean) / torch.tensor(std)).float().view(channels)
        # Copies of a batch are most of what loading it costs.
        self._as_they_are = inputs.dtype == torch.float32 and bool(
            (self._raw_factor == 1).all() and (self._offset == 0).all()
        )
        self.random_sources: tuple[str, ...] = () if augment is None else ("torch",)
        if transform is not None:
            self.random_sources = RANDOM_SOURCES

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """The targets of these samples, one a row."""
        return self.targets[self.rows]

    def select(self, rows: Tensor) -> ArrayData:
        """Some of these samples; the arrays are shared."""
        other = copy(self)
        other.rows = self.rows[rows]
        return other

    def plain(self) -> ArrayData:
        """The same samples without augmentation."""
        other = copy(self)
        other.augment, other.transform, other.random_sources = None, None, ()
        return other

    def augmented(self, augment: Callable[[Tensor, Tensor], Tensor]) -> ArrayData:
        """The same samples under another augmentation."""
        other = self.plain()
        other.augment, other.random_sources = augment, ("torch",)
        return other

    def load(self, indices: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The batch `(inputs, targets)` of some samples; see `kdlightning.data.views.BatchLoading`."""
        rows = self.rows[indices]
        raw = self.inputs[rows]
        if self.transform is not None:
            raise TypeError("a data set with a transform loads sample by sample")
        if self.augment is not None:
            raw = self.augment(raw, seeds)
        return self._normalised(raw), self.targets[rows]

    def _normalised(self, raw: Tensor) -> Tensor:
        if self._as_they_are and raw.dtype == torch.float32:
            return raw
        ready = raw.is_floating_point() and not self.inputs.is_floating_point()
        return (raw * (self._factor if ready else self._raw_factor)).add_(self._offset)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if self.transform is not None:
            row = self.rows[index]
            return self._normalised(self.transform(self.inputs[row])[None])[0], self.targets[row]
        seeds = torch.randint(2**62, (1,)) if self.augment is not None else torch.zeros(1, dtype=torch.int64)
        inputs, targets = self.load(torch.tensor([index]), seeds)
        return inputs[0], targets[0]
