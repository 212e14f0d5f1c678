"""Groups of token sequences, loaded a whole batch at a time."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdlightning.text.sequences import TokenSequences


class TokenGroups(Dataset):
    """Samples of `size` texts each; a batch is padded to its longest text.

    Args:
        texts: N·`size` texts, those of a sample one after the other.
        size: texts of a sample.
        scores: `(N,)`, floats; None for samples without.
    """

    random_sources: tuple[str, ...] = ()

    def __init__(self, texts: TokenSequences, size: int, scores: Tensor | None = None) -> None:
        self.texts = texts
        self.size = size
        self.scores = scores
        self.rows = torch.arange(len(texts) // size)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each sample's longest text `(N,)`."""
        return self.texts.lengths.view(-1, self.size).amax(dim=1)[self.rows]

    def select(self, rows: Tensor) -> TokenGroups:
        """Some of these samples; the tokens are shared."""
        other = copy(self)
        other.rows = self.rows[rows]
        return other

    def load(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The padded batch: the columns and `attention_mask` `(B, size, T)`, and the scores as `labels` `(B,)`."""
        rows = self.rows[indices]
        places = (rows[:, None] * self.size + torch.arange(self.size)).flatten()
        batch = {name: value.unflatten(0, (-1, self.size)) for name, value in self.texts.load(places, seeds).items()}
        if self.scores is not None:
            batch["labels"] = self.scores[rows]
        return batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.load(torch.tensor([index]), torch.zeros(1)).items()}
