"""For each sample another one of its class."""

from __future__ import annotations

import torch
from torch import Tensor


class Partners:
    """Draws partners: for a sample another one of the same class, each with equal chance.

    Args:
        labels: class numbers `(N,)`, int64. A sample that is alone in its class is its own partner.
    """

    def __init__(self, labels: Tensor) -> None:
        labels = labels.long()
        classes, members = labels.unique(return_inverse=True)
        self.sizes = torch.bincount(members, minlength=len(classes))
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.order = members.argsort(stable=True)
        self.members = members
        self.places = torch.empty_like(self.order)
        self.places[self.order] = torch.arange(len(labels)) - self.starts[members[self.order]]

    def __call__(self, index: Tensor, seeds: Tensor) -> Tensor:
        """The partners' numbers.

        Args:
            index: sample numbers `(B,)`.
            seeds: int64 `(B,)`, not negative: what is drawn for sample n comes from `seeds[n]` alone.

        Returns:
            `(B,)` int64.
        """
        members = self.members[index]
        sizes = self.sizes[members]
        ahead = 1 + seeds % (sizes - 1).clamp(min=1)
        return self.order[self.starts[members] + (self.places[index] + ahead) % sizes]
