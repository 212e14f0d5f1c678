"""A frozen teacher's validation logits, asked for once."""

from __future__ import annotations

import torch
from torch import Tensor


class LogitMemory:
    """Logits `(N, C)` by sample number, trusted after one full pass.

    Args:
        limit: most bytes kept; beyond them nothing is kept and the teacher is asked again.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit = limit
        self.table: Tensor | None = None
        self.known: Tensor | None = None
        self.complete = False
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, index: Tensor | None, logits: Tensor) -> None:
        """Keeps a batch of the first pass."""
        one_each = index is not None and logits.ndim == 2 and len(logits) == len(index)  # not several answers a sample
        if self.complete or index is None or not one_each or self._bytes > self.limit:
            return
        self._bytes += logits.numel() * logits.element_size()
        self._parts.append((index, logits))
        if self._bytes > self.limit:
            self._parts.clear()

    def finish(self) -> None:
        """The first pass is over."""
        if self.complete or not self._parts:
            return
        index, logits = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        rows = int(index.max()) + 1
        self._parts.clear()
        if rows * logits.shape[1] * logits.element_size() > self.limit:
            return
        self.table = logits.new_zeros(rows, logits.shape[1])
        self.known = torch.zeros(rows, dtype=torch.bool, device=logits.device)
        self.table[index], self.known[index] = logits, True
        self.complete = True

    def look_up(self, index: Tensor | None) -> Tensor | None:
        """The logits of these samples, or None if one of them was not in the first pass."""
        if self.table is None or self.known is None or index is None:
            return None
        if int(index.max()) >= len(self.known) or not bool(self.known[index].all()):
            return None
        return self.table[index]
