"""No labels at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.losses.token_mask import token_mask
from kdlightning.metrics import LinearCKA, NearestNeighbourAccuracy
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task


class Unlabelled(Task):
    """Distillation without labels: the loss is what the terms of the mode and of callbacks give.

    Batches are `x` alone, or `(x, y)` of which `y` is not read in training. There is no term `task`, and no `val/loss`.
    What is judged is the student's embedding: its answer as it stands, maps and tokens averaged. timm models give it
    with `num_classes: 0`, transformers' `AutoModel` too.

    Metrics: against a teacher `cka`, the linear centred kernel alignment of the two networks' embeddings over the whole
    set, 0 to 1, which needs neither labels nor one width; it is the monitor. `knn_acc`, if the evaluation data have
    class numbers, which serve this score alone: the share of samples that their nearest neighbours among the others of
    the split name right, by a weighted vote (`val/teacher_knn_acc` is the teacher's). Scores of the literature have the
    training images as neighbours, or a linear classifier on them: `kdlightning.knn_probe` and `linear_probe`.

    Response losses that need no labels, such as `KD` between two classifiers, work as well. Predictions are the
    embeddings.

    Args:
        neighbours: how many vote in `knn_acc`; 0 leaves it out.
    """

    monitor: ClassVar[str] = "val/cka"
    monitor_mode: ClassVar[str] = "max"
    has_loss: ClassVar[bool] = False

    def __init__(self, neighbours: int = 20) -> None:
        if neighbours < 0:
            raise ConfigurationError(f"Unlabelled: neighbours must be at least 0, not {neighbours}")
        self.neighbours = neighbours

    def batch(self, raw: Any) -> Batch:
        """The batch without its target; evaluation finds that again as `labels`."""
        batch = super().batch(raw)
        if batch.target is None:
            return batch
        kept = {each.name: getattr(batch, each.name) for each in fields(batch)}
        return _Probed(**{**kept, "target": None, "labels": batch.target})

    def split(self, raw: Any) -> tuple[Any, Any]:
        """Inputs and labels, if there are any; a list of one tensor, as `TensorDataset(x)` gives it, is inputs."""
        if isinstance(raw, (tuple, list)) and len(raw) == 1:
            return raw[0], None
        return super().split(raw)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """There is none."""
        raise ConfigurationError("Unlabelled has no loss of its own: add a response or a callback")

    def metrics(self) -> dict[str, Metric]:
        """`knn_acc`, for data with labels."""
        return {"knn_acc": NearestNeighbourAccuracy(self.neighbours)} if self.neighbours else {}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `knn_acc`, if it has class numbers."""
        labels = getattr(batch, "labels", None)
        if self.neighbours and isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
            metrics["knn_acc"].update(embedding(output, batch), labels)

    def comparison(self) -> dict[str, Metric]:
        """`cka`."""
        return {"cka": LinearCKA()}

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """Always: widths may differ."""
        return True

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `cka`."""
        metrics["cka"].update(embedding(student, batch), embedding(teacher, batch))

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """The embedding of each sample; probability is None."""
        rows = embedding(output, batch).tolist()
        labels = getattr(batch, "labels", None)
        targets = [None] * len(rows) if labels is None else labels.tolist()
        return [{"prediction": row, "probability": None, "target": t} for row, t in zip(rows, targets, strict=True)]


@dataclass
class _Probed(Batch):
    """A batch whose labels only evaluation reads."""

    labels: Any = None


def embedding(output: ModelOutput, batch: Batch | None = None) -> Tensor:
    """One vector a sample `(B, D)`: the network's answer, or its last hidden states where it has no head.

    Maps `(B, C, H, W)` are averaged over their positions, tokens `(B, N, D)` over the tokens that the batch's attention
    mask has, or all without one.

    Raises:
        ConfigurationError: the network gives neither.
    """
    if not output.has_logits and output.hidden is None:
        raise ConfigurationError("Unlabelled judges embeddings, and a network gave no tensor and no last hidden state")
    answer = widened(output.logits if output.has_logits else output.hidden)
    if answer.ndim == 3:
        mask = token_mask(batch, answer.shape[1])
        if mask is None:
            return answer.mean(dim=1)
        return answer.where(mask[..., None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return answer.flatten(2).mean(dim=2) if answer.ndim > 3 else answer.reshape(len(answer), -1)
