"""The metrics of one network in one stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task


class Scoreboard(nn.ModuleDict):
    """`loss` (the task's, per counted sample or token, if it has one) and the task's metrics.

    Args:
        task: the task.
        kind: "scores" for a network's own metrics, "comparison" for student against teacher.
    """

    def __init__(self, task: Task, kind: str = "scores") -> None:
        metrics: dict[str, Metric] = task.comparison()
        if kind == "scores":
            metrics = {**({"loss": WeightedMean()} if task.has_loss else {}), **task.metrics()}
        super().__init__(metrics)
        self.task = task

    def add(self, output: ModelOutput, batch: Batch) -> None:
        """Counts a batch."""
        if self.task.has_loss:
            count = torch.as_tensor(self.task.count(batch))
            loss = self.task.loss(output, batch)
            mean = loss / count.clamp(min=1) if self.task.counts_tokens else loss
            self._metrics()["loss"].update(mean.detach(), count)
        self.task.update(self._metrics(), output, batch)

    def compare(self, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Counts a batch of a student against its teacher."""
        self.task.compare(self._metrics(), student, teacher, batch)

    def report(self, name: Callable[[str], str]) -> dict[str, Any]:
        """The values under `name(metric)`, and a fresh start."""
        values = {name(short): metric.compute() for short, metric in self._metrics().items() if metric.update_called}
        self.reset()
        return values

    def reset(self) -> None:
        """Forgets everything counted."""
        for metric in self._metrics().values():
            metric.reset()

    def _metrics(self) -> Mapping[str, Metric]:
        return self  # type: ignore[return-value]
