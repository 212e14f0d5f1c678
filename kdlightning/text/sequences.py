"""Token sequences in memory, loaded a whole batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class TokenSequences(Dataset):
    """Texts of unequal length; a batch is padded to its longest one.

    Args:
        columns: for each model input (`input_ids`, perhaps `token_type_ids`) the integers of each text; perhaps
            `labels` too, if there is one for each token.
        labels: `(N,)`, int64 classes or float values; None for texts without.
        padding: the filling of each column; 0 where it is not named.
        rows: which texts, in order; all by default.
    """

    random_sources: tuple[str, ...] = ()

    def __init__(
        self,
        columns: Mapping[str, Sequence[Sequence[int]]],
        labels: Tensor | None = None,
        *,
        padding: dict[str, int] | None = None,
        rows: Tensor | None = None,
    ) -> None:
        lengths = torch.tensor([len(row) for row in columns["input_ids"]])
        self._lengths = lengths
        self._starts = lengths.cumsum(0) - lengths
        # End to end in one tensor each: a batch is then one gather, where a list of lists takes milliseconds.
        self._columns = {name: torch.tensor(list(chain.from_iterable(rows))) for name, rows in columns.items()}
        self.targets = labels
        self.padding = padding or {}
        self.rows = torch.arange(len(lengths)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor | None:
        """The labels of these texts `(N,)`; None without."""
        return None if self.targets is None else self.targets[self.rows]

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of these texts `(N,)`."""
        return self._lengths[self.rows]

    def select(self, rows: Tensor) -> TokenSequences:
        """Some of these texts; the tokens are shared."""
        other = copy(self)
        other.rows = self.rows[rows]
        return other

    def load(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The padded batch: the columns and `attention_mask` `(B, T)`, `labels` `(B,)` if each text has one."""
        rows = self.rows[indices]
        lengths = self._lengths[rows][:, None]
        column = torch.arange(int(lengths.max()))
        inside = column < lengths
        places = (self._starts[rows][:, None] + column).where(inside, 0)
        batch = {
            name: values[places].where(inside, self.padding.get(name, 0)) for name, values in self._columns.items()
        }
        batch["attention_mask"] = inside.long()
        if self.targets is not None:
            batch["labels"] = self.targets[rows]
        return batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.load(torch.tensor([index]), torch.zeros(1)).items()}


class TokenBlocks(Dataset):
    """Blocks of one length, as `kdlightning.text.packing.pack` makes them.

    Args:
        blocks: `(N, T)` tensors by name.
    """

    random_sources: tuple[str, ...] = ()

    def __init__(self, blocks: dict[str, Tensor]) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks["input_ids"])

    def select(self, rows: Tensor) -> TokenBlocks:
        """Some of these blocks."""
        return TokenBlocks({name: values[rows] for name, values in self.blocks.items()})

    def load(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The blocks of some indices, stacked."""
        return {name: values[indices] for name, values in self.blocks.items()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.blocks.items()}
