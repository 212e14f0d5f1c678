"""Which of some passages answers a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.groups import Groups, GroupTask, texts_of


class Reranking(GroupTask):
    """A cross-encoder scores query and passage read together; a sample is one query with its positive and negatives.

    Batches are mappings of `(B, G, T)` inputs, the pair of query and positive first, as `TextGroups(together=True)`
    gives them. Networks answer one number a pair (transformers' `num_labels: 1`). The loss is the cross-entropy of the
    positive among its own candidates (Gao et al., "Rethink training of BERT rerankers", ECIR 2021). Responses see
    scores `(B, G)`: `MarginMSE`, or `KD` between the softmaxes over the candidates.

    Metrics: `mrr`, the mean reciprocal rank of the positive among its G candidates, the monitor (of equal scores the
    positive counts as the last); `acc`, the share of queries whose positive is first; and against a teacher
    `agreement`, the share of queries with the same first candidate.
    """

    monitor: ClassVar[str] = "val/mrr"
    monitor_mode: ClassVar[str] = "max"

    def read(self, batch: Groups) -> Groups:
        """The positive is the first candidate."""
        device = batch.inputs["input_ids"].device
        return replace(batch, target=torch.zeros(batch.size, dtype=torch.long, device=device))

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean cross-entropy of the positive among its candidates."""
        return functional.cross_entropy(_scores(output.logits, batch), self.with_target(batch))

    def rows(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Scores of each query's candidates."""
        return _scores(student, batch), _scores(teacher, batch), batch

    def metrics(self) -> dict[str, Metric]:
        """`mrr` and `acc`."""
        return {"mrr": WeightedMean(), "acc": WeightedMean()}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `mrr` and `acc`."""
        scores = _scores(output.logits, batch)
        rank = 1 + (scores[:, 1:] >= scores[:, :1]).sum(dim=1)
        metrics["mrr"].update(1 / rank)
        metrics["acc"].update((rank == 1).float())

    def comparison(self) -> dict[str, Metric]:
        """`agreement`."""
        return {"agreement": WeightedMean()}

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `agreement`."""
        ours, theirs = (_scores(output.logits, batch).argmax(dim=1) for output in (student, teacher))
        metrics["agreement"].update((ours == theirs).float())

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """For each query the place of its best candidate (0 is the positive), and all scores."""
        scores = _scores(output.logits, batch)
        best = scores.softmax(dim=1).max(dim=1)
        return [
            {"prediction": place, "probability": share, "target": 0, "scores": row}
            for place, share, row in zip(best.indices.tolist(), best.values.tolist(), scores.tolist(), strict=True)
        ]


def _scores(logits: Tensor, batch: Batch) -> Tensor:
    group = texts_of(batch)
    if logits.numel() != batch.size * group:
        raise ConfigurationError(
            f"Reranking reads one score a pair, and the model gives {tuple(logits.shape)} for {batch.size * group} "
            "pairs: build it with num_labels: 1"
        )
    return widened(logits).reshape(-1, group)
