"""Batches whose samples are mixed with each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kdlightning.data.batch import LoadedBatch
from kdlightning.data.seeding import mix
from kdlightning.errors import ConfigurationError


class Mixing:
    """MixUp and CutMix: each sample of a training batch is mixed with another one of it, inputs and targets alike.

    MixUp (Zhang et al., ICLR 2018) takes λ·x_i + (1−λ)·x_j with one λ of Beta(a, a) for the batch and j from a random
    permutation; a = 1 draws λ evenly. CutMix (Yun et al., ICCV 2019) pastes a box of x_j, of share 1−λ of the area
    before it is cut off at the border, and λ becomes the true share. With both, each batch gets one of them, either
    with probability ½. λ is at least ½ (of λ and 1−λ the larger): the pairs are the same, and the number of a sample
    (`Batch.index`) is then that of the one with the larger share. Further views are mixed just as the first.

    Class numbers `(B,)` become soft targets `(B, C)`; floating-point targets are mixed as they are. Everything random
    comes from (seed, view, the first sample's number, size): a batch that is loaded again is the same again.

    Args:
        mixup: a of MixUp's Beta(a, a), 0 for none.
        cutmix: a of CutMix's, 0 for none.
        num_classes: number of classes, for targets that are class numbers.
        seed: of everything random.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int | None, seed: int) -> None:
        self.mixup = mixup
        self.cutmix = cutmix
        self.num_classes = num_classes
        self.seed = seed

    def __call__(self, batch: LoadedBatch) -> LoadedBatch:
        """The mixed batch."""
        size = len(batch.index)
        draws = numpy.random.default_rng(mix(self.seed, int(batch.view[0]), int(batch.index[0]), size, -2))
        cuts = self.cutmix > 0 and (self.mixup == 0 or draws.random() < 0.5)
        strength = self.cutmix if cuts else self.mixup
        share = float(draws.beta(strength, strength))
        share = max(share, 1 - share)
        partner = torch.from_numpy(draws.permutation(size))
        centre = draws.random(8) if cuts else None
        data, *views = (self._mixed(part, partner, share, centre) for part in (batch.data, *batch.views))
        return replace(batch, data=data, views=tuple(views))

    def _mixed(self, data: Any, partner: Tensor, share: float, centre: Any) -> Any:
        if isinstance(data, Tensor):
            return _inputs(data, partner, share, centre)[0]
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ConfigurationError(
                "mixup and cutmix mix images x or pairs (x, target), and these data give "
                f"{type(data).__name__}: leave them out"
            )
        inputs, share = _inputs(data[0], partner, share, centre)
        target = self._soft(data[1])
        return inputs, share * target + (1 - share) * target[partner]

    def _soft(self, target: Any) -> Tensor:
        if isinstance(target, Tensor) and target.is_floating_point():
            return target
        if not isinstance(target, Tensor) or target.ndim != 1:
            shape = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise ConfigurationError(
                f"mixup and cutmix mix class numbers (batch,) or floating-point targets, not {shape}: leave them out"
            )
        if self.num_classes is None:
            raise ConfigurationError("mixup and cutmix need the number of classes, and these data do not tell it")
        return one_hot(target, self.num_classes).float()


def _inputs(inputs: Any, partner: Tensor, share: float, centre: Any) -> tuple[Tensor, float]:
    """The mixed inputs, and the share of the first of each two."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ConfigurationError(f"mixup and cutmix mix floating-point numbers, not {kind}: leave them out")
    if centre is None:
        return torch.lerp(inputs[partner], inputs, share), share
    if inputs.ndim < 3:
        raise ConfigurationError(f"cutmix pastes boxes of images or signals, not of shape {tuple(inputs.shape[1:])}")
    box = _box(inputs.shape[2:], 1 - share, centre)
    place: Any = (..., *box)
    pasted = inputs.clone()
    pasted[place] = inputs[partner][place]
    area = 1.0
    for side, length in zip(box, inputs.shape[2:], strict=True):
        area *= (side.stop - side.start) / length
    return pasted, 1 - area


def _box(lengths: Any, area: float, centre: Any) -> list[slice]:
    """A box of a share of the area, around a point given by numbers from 0 to 1, cut off at the border."""
    sides = []
    for length, place in zip(lengths, centre, strict=False):
        size = int(length * area ** (1 / len(lengths)))
        start = int(place * length) - size // 2
        sides.append(slice(max(start, 0), min(start + size, length)))
    return sides
