"""Class-balanced, seeded splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from kdlightning.data.seeding import mix
from kdlightning.errors import ConfigurationError


def held_out_count(val_split: float, total: int) -> int:
    """How many of `total` samples `val_split` holds out: a fraction below 1, or a count.

    Raises:
        ConfigurationError: if it is negative, or leaves nothing to train on.
    """
    if val_split < 0:
        raise ConfigurationError(f"val_split must be a fraction or a count of samples, got {val_split}")
    if 0 < val_split < 1:
        count = max(1, round(val_split * total))
    elif val_split == int(val_split):
        count = int(val_split)
    else:
        raise ConfigurationError(f"val_split must be below 1 or a whole number of samples, got {val_split}")
    if count >= total:
        raise ConfigurationError(f"val_split={val_split} leaves none of the {total} training samples to train on")
    return count


def stratified(labels: Any, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draws `count` samples so that each class has its share, up to rounding.

    Args:
        labels: `(N,)` integers; None or an int N draws without regard to classes.
        count: samples to draw, at most N.
        seed: decides which.

    Returns:
        The drawn and the remaining sample numbers, each in increasing order.
    """
    generator = torch.Generator().manual_seed(mix(seed))
    if isinstance(labels, int):
        order = torch.randperm(labels, generator=generator)
        drawn = torch.zeros(labels, dtype=torch.bool)
        drawn[order[:count]] = True
    else:
        labels = _as_tensor(labels)
        drawn = torch.zeros(len(labels), dtype=torch.bool)
        classes, sizes = labels.unique(return_counts=True)
        shares = sizes.double() * count / len(labels)
        quota = shares.floor().long()
        # The largest remainders get what rounding down has left; equal ones in random order, or small classes
        # of one size would always lose to the first of them.
        ties = torch.rand(len(classes), generator=generator, dtype=torch.float64) * 1e-9
        most = (shares - quota + ties).argsort(descending=True)[: count - int(quota.sum())]
        quota[most] += 1
        for label, share in zip(classes.tolist(), quota.tolist(), strict=True):
            members = (labels == label).nonzero().flatten()
            drawn[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return drawn.nonzero().flatten(), (~drawn).nonzero().flatten()


def _as_tensor(labels: Sequence[int] | Tensor | numpy.ndarray) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.as_tensor(numpy.asarray(labels))
