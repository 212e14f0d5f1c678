"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.unlabelled import Unlabelled, embedding


class SentenceEmbedding(Unlabelled):
    """Sentence embeddings without labels: a student learns where its teacher puts each text.

    Batches are single texts, as `TextClassification` or `MaskedText(labels=False, pack=False)` gives them. There is no
    loss of the task's own: `FeatureKD(CosineEmbedding(), {"logits": "logits"})` regresses the teacher's embedding (with
    a linear adapter between two widths), `RelationKD` with `PKT`, `SP`, `RKD` or `QueueSoftmax` keeps the texts' places
    among each other. Networks come from `sentence_encoder`.

    Metrics: against a teacher `cka`, the monitor (linear centred kernel alignment, 0 to 1, see `Unlabelled`), and
    `cosine`, the texts' mean cosine with the teacher's embedding where the widths agree; `knn_acc`, if the evaluation
    data have class numbers, which serve this score alone. `kdlightning.knn_probe` and `linear_probe` judge embeddings
    by the training texts' labels. Predictions are the embeddings.

    Args:
        neighbours: how many vote in `knn_acc`; 0 leaves it out.
    """

    def comparison(self) -> dict[str, Metric]:
        """`cka` and `cosine`."""
        return {**super().comparison(), "cosine": WeightedMean()}

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `cka`, and to `cosine` if it can be taken."""
        super().compare(metrics, student, teacher, batch)
        ours, theirs = embedding(student, batch), embedding(teacher, batch)
        if ours.shape == theirs.shape:
            metrics["cosine"].update(_cosines(ours, theirs))


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    return functional.cosine_similarity(ours, theirs.to(ours.dtype), dim=1)
