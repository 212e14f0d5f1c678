"""How far up the right passage stands among all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

_TOLERANCE = 1e-5
"""Texts that occur twice differ by rounding, if they were padded to two lengths."""


class CorpusRanks(Metric):
    """Reciprocal ranks, or recall, of each query's passage among all passages of a split, by cosine.

    The embeddings of all texts are kept, in float32. The right one stands in the middle of those that score as it does,
    such as its copies. torchmetrics' retrieval metrics want a score of each pair, and loop over the queries.

    Args:
        recall_at: k of recall: the share of queries whose passage is among the first k; None for the mean reciprocal
            rank.
    """

    full_state_update = False
    queries: list[Tensor]
    positives: list[Tensor]
    negatives: list[Tensor]

    def __init__(self, recall_at: int | None = None) -> None:
        super().__init__()
        self.recall_at = recall_at
        for name in ("queries", "positives", "negatives"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
        """Adds unit embeddings of queries and their passages `(B, D)`, and of further passages `(M, D)`."""
        self.queries.append(queries.detach().float())
        self.positives.append(positives.detach().float())
        self.negatives.append(negatives.detach().float())

    def compute(self) -> Tensor:
        """The mean over the queries."""
        queries, positives = dim_zero_cat(self.queries), dim_zero_cat(self.positives)
        passages = torch.cat([positives, dim_zero_cat(self.negatives)])
        own = (queries * positives).sum(dim=1, keepdim=True)
        ranks = torch.cat(
            [_ranks(part @ passages.T, right) for part, right in zip(queries.split(1024), own.split(1024), strict=True)]
        )
        return (1 / ranks).mean() if self.recall_at is None else (ranks <= self.recall_at).float().mean()


def _ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Places `(B,)`, from 1, of scores `(B, 1)` among `(B, N)` that hold them."""
    above = (scores > own + _TOLERANCE).sum(dim=1)
    beside = (scores >= own - _TOLERANCE).sum(dim=1) - above
    return 1 + above + (beside - 1) / 2
