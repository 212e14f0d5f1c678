"""Token sequences in memory, loaded a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdlightning.text.packing import pad_rows


class TokenSequences(Dataset):
    """Texts of unequal length; a batch is padded to its longest one.

    Args:
        columns: for each model input (`input_ids`, perhaps `token_type_ids`) the integers of each text.
        labels: `(N,)`, int64 classes or float values.
        padding: the filling of each column; 0 where it is not named.
        rows: which texts, in order; all by default.
    """

    random_sources: tuple[str, ...] = ()

    def __init__(
        self,
        columns: dict[str, Sequence[Sequence[int]]],
        labels: Tensor,
        *,
        padding: dict[str, int] | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.columns = columns
        self.targets = labels
        self.padding = padding or {}
        self.rows = torch.arange(len(labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """The labels of these texts `(N,)`."""
        return self.targets[self.rows]

    def select(self, rows: Tensor) -> TokenSequences:
        """Some of these texts; the tokens are shared."""
        return TokenSequences(self.columns, self.targets, padding=self.padding, rows=self.rows[rows])

    def load(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The padded batch: the columns and `attention_mask` `(B, T)`, `labels` `(B,)`."""
        rows = self.rows[indices].tolist()
        batch: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            batch[name] = pad_rows([column[row] for row in rows], self.padding.get(name, 0))
        lengths = torch.tensor([len(self.columns["input_ids"][row]) for row in rows])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
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
