"""Texts of which some tokens are hidden, anew in each view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from kdlightning.data.seeding import mix_tensors
from kdlightning.text.packing import IGNORED
from kdlightning.text.sequences import TokenSequences


class MaskedSequences(TokenSequences):
    """Texts with `labels` `(B, T)`: the original of each chosen token, -100 elsewhere.

    Each token, but special ones, is chosen with probability `share`. Of the chosen ones 80 % become the mask, 10 % some
    token of the vocabulary, 10 % stay (Devlin et al., NAACL 2019; drawn for each token, as RoBERTa and transformers do
    it, where BERT's own code counted 15 % of each text off). What is drawn depends on the seed of the sample's view and
    on the place alone, so that it is the same in any batch.

    Args:
        columns: `input_ids` of each text; with `words` (the number of the word that each token is a piece of) all
            pieces of a word are chosen together (whole-word masking; 80/10/10 is still drawn for each).
        mask: number of the mask token.
        special: tokens that are never chosen, and never put in another's place.
        vocabulary: number of tokens.
        share: probability of being chosen.
        padding: as in `TokenSequences`.
    """

    random_sources: tuple[str, ...] = ("torch",)

    def __init__(
        self,
        columns: Mapping[str, Sequence[Sequence[int]]],
        *,
        mask: int,
        special: Sequence[int],
        vocabulary: int,
        share: float = 0.15,
        padding: dict[str, int] | None = None,
    ) -> None:
        super().__init__(columns, padding=padding)
        self.mask = mask
        self.share = share
        self.ordinary = torch.ones(vocabulary, dtype=torch.bool)
        self.ordinary[torch.tensor(list(special), dtype=torch.int64)] = False
        self.others = self.ordinary.nonzero().flatten()

    def select(self, rows: Tensor) -> MaskedSequences:
        """Some of these texts; the tokens are shared."""
        other = copy(self)
        other.rows = self.rows[rows]
        return other

    def load(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The padded batch: `input_ids` with masks, `attention_mask` and `labels`, each `(B, T)`."""
        batch = super().load(indices, seeds)
        ids = batch["input_ids"]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        seeds = seeds[:, None].expand_as(ids)
        chosen = _draw(seeds, batch.pop("words", places), 0) < self.share
        chosen = chosen & self.ordinary[ids] & (batch["attention_mask"] == 1)
        fate = _draw(seeds, places, 1)
        other = self.others[(_draw(seeds, places, 2) * len(self.others)).long()]
        shown = torch.where(chosen & (fate < 0.9), other, ids).where(~chosen | (fate >= 0.8), self.mask)
        return {**batch, "input_ids": shown, "labels": ids.masked_fill(~chosen, IGNORED)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = torch.randint(2**62, (1,))
        return {name: values[0] for name, values in self.load(torch.tensor([index]), seed).items()}


def _draw(seeds: Tensor, places: Tensor, which: int) -> Tensor:
    """Even draws from 0 to below 1, in float64: functions of seed, place and number."""
    return (mix_tensors(seeds, places, which) >> 10).double() / 2**53
