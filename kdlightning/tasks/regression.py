"""Numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanSquaredError, Metric, PearsonCorrCoef, SpearmanCorrCoef

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task, check_metrics


class Regression(Task):
    """Regression with mean squared error; outputs `(B, num_outputs)` or `(B,)`, targets of the same number of values.

    Metrics: `rmse`, the monitor; those of `metrics`; and against a teacher `mse_to_teacher` (mean squared difference of
    the predictions).

    Args:
        num_outputs: numbers predicted for a sample.
        metrics: further ones for a single number: "pearson" and "spearman", correlations from -1 to 1 (GLUE's for
            STS-B); NaN where all predictions are one number.
    """

    monitor: ClassVar[str] = "val/rmse"
    monitor_mode: ClassVar[str] = "min"
    class_probabilities: ClassVar[bool] = False

    def __init__(self, num_outputs: int = 1, metrics: Sequence[str] = ()) -> None:
        self.num_outputs = num_outputs
        self.further = check_metrics("Regression", metrics, ("pearson", "spearman"))
        if self.further and num_outputs != 1:
            raise ConfigurationError(
                f"Regression: {self.further[0]} is of single numbers, and num_outputs is {num_outputs}: leave it out"
            )

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean squared error over samples and outputs."""
        return functional.mse_loss(*self._pair(output.logits, self.with_target(batch)))

    def metrics(self) -> dict[str, Metric]:
        """`rmse`, and the further ones."""
        found: dict[str, Metric] = {"rmse": MeanSquaredError(squared=False)}
        with warnings.catch_warnings():  # Spearman's says that it keeps all values, as it must
            warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
            makers = {"pearson": PearsonCorrCoef, "spearman": SpearmanCorrCoef}
            return {**found, **{name: makers[name]() for name in self.further}}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to the metrics."""
        prediction, target = self._pair(output.logits, self.with_target(batch))
        metrics["rmse"].update(prediction, target)
        for name in self.further:
            metrics[name].update(prediction.flatten(), target.flatten())

    def comparison(self) -> dict[str, Metric]:
        """`mse_to_teacher`: mean squared difference from the teacher's predictions."""
        return {"mse_to_teacher": WeightedMean()}

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `mse_to_teacher`."""
        ours, theirs = self._pair(student.logits, teacher.logits)
        metrics["mse_to_teacher"].update((ours - theirs).square())

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """The predicted numbers; probability is None."""
        values = output.logits.float().reshape(-1, self.num_outputs).tolist()
        targets = [None] * len(values) if batch.target is None else batch.target.reshape(len(values), -1).tolist()
        return [
            {"prediction": _single(v), "probability": None, "target": _single(t)}
            for v, t in zip(values, targets, strict=True)
        ]

    def _pair(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if prediction.numel() != target.numel() or prediction.numel() != len(prediction) * self.num_outputs:
            raise ConfigurationError(
                f"the model gives {tuple(prediction.shape)}, the targets are {tuple(target.shape)} and the task has "
                f"num_outputs={self.num_outputs}: make them agree"
            )
        shape = (len(prediction), self.num_outputs)
        prediction = widened(prediction)
        return prediction.reshape(shape), target.to(prediction.dtype).reshape(shape)


def _single(values: list[float] | None) -> Any:
    return values[0] if values is not None and len(values) == 1 else values
