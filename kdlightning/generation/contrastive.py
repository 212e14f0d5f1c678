"""Contrastive decoding: tokens that become more plausible in one context than in another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


def contrastive_scores(log_probs: Tensor, against: Tensor, weight: float) -> Tensor:
    """`log P + weight · (log P − log P')`, the sum of a token's plausibility and its growth.

    For weight 1 this is SCOTT's rule (Wang et al., ACL 2023); its public code writes the same argmax as
    `log P − λ · log P'` with λ = weight / (1 + weight), 0.5 by default.

    Args:
        log_probs: log P, given the context that counts, `(B, V)`.
        against: log P', given the other context, `(B, V)`.
        weight: of the growth, 0 or more.

    Returns:
        `(B, V)`; minus infinity where the context that counts rules a token out.
    """
    impossible = log_probs.isneginf()
    # A token that the other context alone rules out is as good as one that it finds hardly possible.
    floor = torch.finfo(against.dtype).min / (4.0 * (1.0 + weight))
    growth = log_probs.masked_fill(impossible, 0.0) - against.clamp(min=floor)
    return (log_probs + weight * growth).masked_fill(impossible, -torch.inf)


class ContrastiveScores(LogitsProcessor):
    """Scores for `generate` on a batch whose second half are the other contexts of the first half, in its order.

    Both halves get the same scores, so they write the same tokens, and share one forward pass with one key-value
    cache. Where the context that counts would end the text by itself, it does: there the growth is not looked at.

    Args:
        weight: of the growth in plausibility.
        ends: tokens that end a text.
        criteria: what else ends one.
    """

    def __init__(self, weight: float, ends: Sequence[int] = (), criteria: Sequence[StoppingCriteria] = ()) -> None:
        self.weight = weight
        self.ends = list(ends)
        self.criteria = list(criteria)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The same scores `(2 B, V)` for both halves."""
        count = len(scores) // 2
        log_probs, against = scores.log_softmax(dim=-1).split(count)
        combined = contrastive_scores(log_probs, against, self.weight)
        own = log_probs.argmax(dim=-1, keepdim=True)
        alone = torch.full_like(combined, -torch.inf).scatter(1, own, 0.0)
        return torch.where(self._would_end(input_ids[:count], own, scores), alone, combined).repeat(2, 1)

    def _would_end(self, input_ids: Tensor, own: Tensor, scores: Tensor) -> Tensor:
        """Whether texts `(B, T)` end with a token `(B, 1)` more, as `(B, 1)`."""
        ended = torch.isin(own, torch.tensor(self.ends, dtype=own.dtype, device=own.device))
        for criterion in self.criteria:
            ended |= criterion(torch.cat([input_ids, own], dim=1), scores)[:, None]
        return ended
