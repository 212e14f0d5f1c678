"""One-dimensional signals made from handwritten digits: nothing to download, and harder than they look."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LENGTH = 40
_POINTS = 16


@cache
def templates() -> Tensor:
    """A curve of 16 points for each digit `(10, 16)`: its mean image's ink by row, then by column, standardised.

    From scikit-learn's bundled digits.
    """
    from sklearn.datasets import load_digits  # takes a second

    digits = load_digits()
    means = np.stack([digits.images[digits.target == label].mean(0) for label in range(10)])
    curves = torch.from_numpy(np.concatenate([means.sum(2), means.sum(1)], axis=1))
    curves = curves - curves.mean(0)  # what all digits share tells none apart
    return (curves - curves.mean(1, keepdim=True)) / curves.std(1, keepdim=True)


def make_signals(count: int, seed: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Signals and their classes, the same for a seed; in the manner of MNIST-1D (Greydanus & Kobak, ICML 2024).

    A digit's curve is stretched to 16 to 32 steps, scaled, set down anywhere among 40, tilted, and buried in smooth and
    in white noise.

    Args:
        count: number of signals; the classes take turns.
        seed: of everything random.
        noise: deviation of the white noise; the smooth noise has as much again.

    Returns:
        Inputs `(count, 1, 40)` float32 of mean 0 and deviation 1, labels `(count,)` int64.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)

    labels = torch.arange(count) % 10
    width = uniform(16, 32)
    start = uniform(0, 1) * (LENGTH - width)
    place = (torch.arange(LENGTH) - start) / width  # 0 to 1 along the curve
    curve = _sampled(templates()[labels], place) * uniform(0.6, 1.4)
    smooth = F.avg_pool1d(torch.randn(count, 1, LENGTH + 6, generator=generator, dtype=torch.float64), 7, 1)[:, 0]
    white = torch.randn(count, LENGTH, generator=generator, dtype=torch.float64)
    slope = uniform(-0.75, 0.75) * torch.linspace(-1, 1, LENGTH, dtype=torch.float64)
    signals = curve + slope + noise * (white + smooth * 7**0.5)
    order = torch.randperm(count, generator=generator)
    return ((signals - signals.mean()) / signals.std()).float()[order, None], labels[order]


def _sampled(curves: Tensor, place: Tensor) -> Tensor:
    """Curves `(N, P)` read at places `(N, L)` of [0, 1], linearly between their points, 0 outside."""
    position = place.clamp(0, 1) * (_POINTS - 1)
    left = position.floor().long().clamp(max=_POINTS - 2)
    share = position - left
    values = curves.gather(1, left) * (1 - share) + curves.gather(1, left + 1) * share
    return values * ((place >= 0) & (place <= 1))
