"""Any number of labels a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task


class MultiLabel(Task):
    """Multi-label classification with binary cross-entropy; targets `(B, C)` of 0 and 1.

    Metrics: `f1` (macro, at probability 0.5), `acc` (per label), and against a teacher `agreement` (share of equal
    label decisions) and `kl` (mean over samples of the summed KL of Bernoullis at temperature 1).

    Args:
        num_labels: number of labels C.
    """

    monitor: ClassVar[str] = "val/f1"
    monitor_mode: ClassVar[str] = "max"
    class_probabilities: ClassVar[bool] = False
    label_probabilities: ClassVar[bool] = True

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.num_classes = num_labels

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Binary cross-entropy, mean over samples and labels."""
        logits, target = widened(output.logits), self.with_target(batch)
        if logits.shape != target.shape or logits.shape[-1] != self.num_labels:
            raise ConfigurationError(
                f"the model gives {tuple(logits.shape)}, the targets are {tuple(target.shape)} and the task has "
                f"num_labels={self.num_labels}: make them agree; a target is a row of 0 and 1 for each sample"
            )
        return functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def metrics(self) -> dict[str, Metric]:
        """`f1` and `acc`."""
        return {
            "f1": MultilabelF1Score(self.num_labels, validate_args=False),
            "acc": MultilabelAccuracy(self.num_labels, average="micro", validate_args=False),
        }

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `f1` and `acc`."""
        decision, target = (output.logits > 0).int(), self.with_target(batch).int()
        metrics["f1"].update(decision, target)
        metrics["acc"].update(decision, target)

    def comparison(self) -> dict[str, Metric]:
        """`agreement` and `kl`."""
        return {"agreement": WeightedMean(), "kl": WeightedMean()}

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `agreement` and `kl`."""
        ours, theirs = widened(student.logits), widened(teacher.logits)
        metrics["agreement"].update(((ours > 0) == (theirs > 0)).float())
        positive = theirs.sigmoid() * (functional.logsigmoid(theirs) - functional.logsigmoid(ours))
        negative = (-theirs).sigmoid() * (functional.logsigmoid(-theirs) - functional.logsigmoid(-ours))
        metrics["kl"].update((positive + negative).sum(dim=1))

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """The labels above probability 0.5 and all probabilities."""
        probabilities = output.logits.float().sigmoid().tolist()
        targets = [None] * len(probabilities) if batch.target is None else _labels(batch.target.tolist())
        chosen = _labels([[p > 0.5 for p in row] for row in probabilities])
        return [
            {"prediction": p, "probability": q, "target": t}
            for p, q, t in zip(chosen, probabilities, targets, strict=True)
        ]


def _labels(rows: list[Any]) -> list[list[int]]:
    return [[number for number, on in enumerate(row) if on] for row in rows]
