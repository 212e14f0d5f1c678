"""One class a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import KLDivergence, Metric
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task, check_metrics


class Classification(Task):
    """Single-label classification with cross-entropy; batches `(x, y)` or mappings with `labels`.

    Targets are `(B,)` class numbers, or `(B, C)` soft targets (mixup). Metrics: `acc`, the monitor; those of `metrics`;
    and against a teacher `agreement` (share of equal predictions) and `kl` (mean KL(teacher‖student) at temperature 1).

    Args:
        num_classes: number of classes.
        label_smoothing: smoothing of the hard-label loss, 0 to 1.
        metrics: further ones: "f1", of class 1 where there are two, as GLUE has it for MRPC and QQP, and else the mean
            of the classes' F1; "matthews", Matthews' correlation (GLUE's for CoLA), -1 to 1.
    """

    monitor: ClassVar[str] = "val/acc"
    monitor_mode: ClassVar[str] = "max"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, metrics: Sequence[str] = ()) -> None:
        if num_classes < 2:
            raise ConfigurationError(f"Classification: num_classes must be at least 2, not {num_classes}")
        self.further = check_metrics("Classification", metrics, ("f1", "matthews"))
        self.num_classes: int = num_classes
        self.label_smoothing = label_smoothing

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        logits = output.logits
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ConfigurationError(
                f"the model gives logits of shape {tuple(logits.shape)} and the task has "
                f"num_classes={self.num_classes}: make the two agree"
            )
        logits, target = widened(logits), self.with_target(batch)
        target = target.to(logits.dtype) if target.is_floating_point() else target
        return functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def metrics(self) -> dict[str, Metric]:
        """`acc`, the share of right predictions, and the further ones."""
        makers: dict[str, Any] = {
            "acc": lambda: MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
            "f1": lambda: (
                BinaryF1Score(validate_args=False)
                if self.num_classes == 2
                else MulticlassF1Score(self.num_classes, average="macro", validate_args=False)
            ),
            "matthews": lambda: MulticlassMatthewsCorrCoef(self.num_classes, validate_args=False),
        }
        return {name: makers[name]() for name in ("acc", *self.further)}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to the metrics."""
        prediction, target = output.logits.argmax(dim=1), self._classes(batch)
        for name in ("acc", *self.further):
            metrics[name].update(prediction, target)

    def comparison(self) -> dict[str, Metric]:
        """`agreement` and `kl`."""
        return {
            "agreement": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
            "kl": KLDivergence(log_prob=True),
        }

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `agreement` and `kl`."""
        metrics["agreement"].update(student.logits.argmax(dim=1), teacher.logits.argmax(dim=1))
        log_probabilities = [widened(output.logits).log_softmax(dim=1) for output in (teacher, student)]
        metrics["kl"].update(*log_probabilities)

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """The most probable class and its probability."""
        probability, prediction = widened(output.logits).softmax(dim=1).max(dim=1)
        target = [None] * len(prediction) if batch.target is None else self._classes(batch).tolist()
        return [
            {"prediction": p, "probability": q, "target": t}
            for p, q, t in zip(prediction.tolist(), probability.tolist(), target, strict=True)
        ]

    def _classes(self, batch: Batch) -> Tensor:
        target = self.with_target(batch)
        return target.argmax(dim=1) if torch.is_floating_point(target) else target
