"""How alike two texts are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, SpearmanCorrCoef

from kdlightning.data.batch import Batch
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.groups import GroupTask, grouped_embeddings


class SentenceSimilarity(GroupTask):
    """Pairs of texts with a score: the cosine of their embeddings is to be the score (STS).

    Batches are mappings of `(B, 2, T)` inputs and `labels` `(B,)`, scores from 0 (or -1) to 1, as `TextGroups` gives
    them. The loss is the mean squared difference of cosine and score (sentence-transformers' `CosineSimilarityLoss`;
    Reimers & Gurevych, EMNLP 2019). Distillation adds `FeatureKD(CosineEmbedding(), {"logits": "logits"})`, which reads
    both texts of each pair, or a relation.

    Metrics: `spearman`, the rank correlation of cosine and score, the monitor; against a teacher `mse_to_teacher`, the
    mean squared difference of the pairs' cosines.
    """

    monitor: ClassVar[str] = "val/spearman"
    monitor_mode: ClassVar[str] = "max"
    class_probabilities: ClassVar[bool] = False

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean squared difference of cosine and score."""
        cosine = _cosine(output, batch)
        return functional.mse_loss(cosine, self.with_target(batch).to(cosine.dtype))

    def metrics(self) -> dict[str, Metric]:
        """`spearman`."""
        with warnings.catch_warnings():  # it says that it keeps all values, as it must
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
            return {"spearman": SpearmanCorrCoef()}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `spearman`."""
        metrics["spearman"].update(_cosine(output, batch), self.with_target(batch).float())

    def comparison(self) -> dict[str, Metric]:
        """`mse_to_teacher`."""
        return {"mse_to_teacher": WeightedMean()}

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """Always: widths may differ."""
        return True

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `mse_to_teacher`."""
        metrics["mse_to_teacher"].update((_cosine(student, batch) - _cosine(teacher, batch)).square())

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """The cosine of each pair; probability is None."""
        values = _cosine(output, batch).tolist()
        targets = [None] * len(values) if batch.target is None else batch.target.tolist()
        return [{"prediction": v, "probability": None, "target": t} for v, t in zip(values, targets, strict=True)]


def _cosine(output: ModelOutput, batch: Batch) -> Tensor:
    vectors = grouped_embeddings(output, batch)
    return (vectors[:, 0] * vectors[:, 1]).sum(dim=1)
