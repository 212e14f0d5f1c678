"""Finding a query's passage by its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.ranking import CorpusRanks
from kdlightning.tasks.groups import GroupTask, grouped_embeddings


class PassageRetrieval(GroupTask):
    """A query, its passage and perhaps negatives, each with an embedding of its own.

    Batches are mappings of `(B, G, T)` inputs: the query, the positive, then negatives, as `TextGroups` gives them. The
    loss is the cross-entropy of the positive among all passages of the micro-batch, with scores `scale`·cosine
    (sentence-transformers' `MultipleNegativesRankingLoss`; Henderson et al., 2017): it depends on which samples share a
    micro-batch. Responses see the scores `(B, G − 1)` of a query's own passages, the positive's first: `MarginMSE`,
    or `KD` between the softmaxes over them, for any two widths. Terms on the tap `logits` see all embeddings.

    Metrics, over all passages of the split: `mrr`, the mean reciprocal rank of the query's positive, the monitor, and
    `recall`, the share of queries whose positive is among the first `recall_at`.

    Args:
        scale: of cosines in the loss; 20 is sentence-transformers'.
        recall_at: number of passages that `recall` looks at.
    """

    monitor: ClassVar[str] = "val/mrr"
    monitor_mode: ClassVar[str] = "max"

    def __init__(self, scale: float = 20.0, recall_at: int = 10) -> None:
        if not scale > 0:
            raise ConfigurationError(f"PassageRetrieval: scale must be above 0, not {scale}")
        if recall_at < 1:
            raise ConfigurationError(f"PassageRetrieval: recall_at must be at least 1, not {recall_at}")
        self.scale = scale
        self.recall_at = recall_at

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Cross-entropy of each query's positive among the micro-batch's passages."""
        vectors = grouped_embeddings(output, batch)
        passages = vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives, then all first negatives, …
        scores = self.scale * vectors[:, 0] @ passages.T
        return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def rows(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Scores of each query's own passages."""
        ours, theirs = (self._scores(ModelOutput(vectors), batch) for vectors in (student, teacher))
        return ours, theirs, batch

    def metrics(self) -> dict[str, Metric]:
        """`mrr` and `recall`."""
        return {"mrr": CorpusRanks(), "recall": CorpusRanks(self.recall_at)}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `mrr` and `recall`."""
        vectors = grouped_embeddings(output, batch)
        for metric in metrics.values():
            if isinstance(metric, CorpusRanks):
                metric.update(vectors[:, 0], vectors[:, 1], vectors[:, 2:].flatten(0, 1))

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """There is nothing to compare."""
        return False

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """For each query the place of the best of its own passages (0 is the positive) and all their cosines."""
        scores = self._scores(output, batch) / self.scale
        return [
            {"prediction": row.index(max(row)), "probability": None, "target": 0, "scores": row}
            for row in scores.tolist()
        ]

    def _scores(self, output: ModelOutput, batch: Batch) -> Tensor:
        vectors = grouped_embeddings(output, batch)
        return self.scale * (vectors[:, 1:] @ vectors[:, 0, :, None]).squeeze(-1)
