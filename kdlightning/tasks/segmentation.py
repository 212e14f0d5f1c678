"""One class a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task


class Segmentation(Task):
    """Semantic segmentation with cross-entropy; logits `(B, C, h, w)`, targets `(B, H, W)` of class numbers.

    Logits of another size than the target, usually smaller ones, are resized to it bilinearly (`align_corners=False`)
    for loss, metrics and predictions. The loss is the mean over the counted pixels of a batch; `val/loss` is that of
    the whole set. Metrics: `miou`, the mean intersection over union of one confusion matrix of all pixels, over the
    classes that occur in targets or predictions; `acc`, the share of right pixels; against a teacher `agreement` and
    `kl` (temperature 1), means over pixels.

    Response losses such as `KD` compare the networks pixel by pixel: each counted pixel of the student's logits is a
    row `(pixels, C)`, as if it were a sample. The teacher's logits are resized to the student's where sizes differ, and
    each row has the label at its pixel's centre.

    Args:
        num_classes: number of classes, the background included.
        ignore_index: target of pixels that do not count, in losses and metrics alike; 255 is that of VOC, Cityscapes
            and ADE20K. None counts all.
    """

    monitor: ClassVar[str] = "val/miou"
    monitor_mode: ClassVar[str] = "max"
    dense: ClassVar[bool] = True

    def __init__(self, num_classes: int, ignore_index: int | None = 255) -> None:
        if num_classes < 2:
            raise ConfigurationError(f"Segmentation: num_classes must be at least 2, not {num_classes}")
        self.num_classes: int = num_classes
        self.ignore_index = ignore_index

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean cross-entropy over the counted pixels; 0 if there are none."""
        logits, target = self._pair(output, batch)
        total = functional.cross_entropy(logits, target, ignore_index=self._ignored, reduction="sum")
        return total / self._counted(target).sum().clamp(min=1)

    def count(self, batch: Batch) -> Tensor | int:
        """Counted pixels."""
        return self._counted(self._target(batch)).sum()

    def rows(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """The counted pixels of the student's logits, and of the teacher's at the same places, as rows."""
        self._check(student)
        if teacher.ndim == 4 and teacher.shape[2:] != student.shape[2:]:
            teacher = _resized(widened(teacher), student.shape[2:])
        ours, theirs = (logits.movedim(1, -1).flatten(0, 2) for logits in (student, teacher))
        if batch.target is None:
            return ours, theirs, batch
        target = _at_centres(self._target(batch), student.shape[2:]).flatten()
        if self.ignore_index is not None:
            counted = self._counted(target).nonzero().flatten()
            ours, theirs, target = ours[counted], theirs[counted], target[counted]
        return ours, theirs, replace(batch, target=target)

    def metrics(self) -> dict[str, Metric]:
        """`miou` and `acc`."""
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "validate_args": False}
        return {
            "miou": MulticlassJaccardIndex(self.num_classes, average="macro", **options),
            "acc": MulticlassAccuracy(self.num_classes, average="micro", **options),
        }

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `miou` and `acc`."""
        logits, target = self._pair(output, batch)
        prediction = logits.argmax(dim=1)
        metrics["miou"].update(prediction, target)
        metrics["acc"].update(prediction, target)

    def comparison(self) -> dict[str, Metric]:
        """`agreement` and `kl`."""
        return {"agreement": WeightedMean(), "kl": WeightedMean()}

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """Two maps of logits for the same classes, of any sizes."""
        shapes = [output.logits.shape for output in (student, teacher)]
        return all(len(shape) == 4 for shape in shapes) and shapes[0][1] == shapes[1][1]

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `agreement` and `kl`."""
        ours, theirs, _ = self.rows(widened(student.logits), widened(teacher.logits), batch)
        metrics["agreement"].update((ours.argmax(dim=1) == theirs.argmax(dim=1)).float())
        ours, theirs = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
        metrics["kl"].update((theirs.exp() * (theirs - ours)).sum(dim=1))

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """One row an image: its map of classes as runs (see `decode_runs`), its shape, and the mean probability."""
        logits = widened(output.logits)
        self._check(logits)
        size = _size(batch)
        probability, prediction = (logits if size is None else _resized(logits, size)).softmax(dim=1).max(dim=1)
        shape = list(prediction.shape[1:])
        targets = [None] * len(prediction) if batch.target is None else [runs(t) for t in self._target(batch)]
        sureness = probability.flatten(1).mean(dim=1).tolist()
        return [
            {"prediction": runs(p), "shape": shape, "probability": q, "target": t}
            for p, q, t in zip(prediction, sureness, targets, strict=True)
        ]

    @property
    def _ignored(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index

    def _counted(self, target: Tensor) -> Tensor:
        return torch.ones_like(target, dtype=torch.bool) if self.ignore_index is None else target != self.ignore_index

    def _check(self, logits: Tensor) -> None:
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ConfigurationError(
                f"the model gives logits of shape {tuple(logits.shape)} and the task, which reads (batch, classes, "
                f"height, width), has num_classes={self.num_classes}: make the two agree"
            )

    def _target(self, batch: Batch) -> Tensor:
        target = self.with_target(batch)
        if target.ndim != 3 or target.is_floating_point():
            raise ConfigurationError(
                f"Segmentation needs targets (batch, height, width) of class numbers, not {target.dtype} "
                f"{tuple(target.shape)}"
            )
        return target.long()

    def _pair(self, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits at the target's size, and the target."""
        logits, target = widened(output.logits), self._target(batch)
        self._check(logits)
        return _resized(logits, target.shape[1:]), target


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def _at_centres(target: Tensor, size: Sequence[int]) -> Tensor:
    """The labels `(B, h, w)` at the centres of a coarser grid of pixels."""
    for dim, length in enumerate(size, start=1):
        own = target.shape[dim]
        if own != length:
            places = (2 * torch.arange(length, device=target.device) + 1) * own // (2 * length)
            target = target.index_select(dim, places)
    return target


def _size(batch: Batch) -> Sequence[int] | None:
    """The size of a batch's images."""
    if batch.target is not None:
        return batch.target.shape[-2:]
    inputs = batch.inputs.get("pixel_values") if isinstance(batch.inputs, Mapping) else batch.inputs
    return inputs.shape[-2:] if isinstance(inputs, Tensor) and inputs.ndim == 4 else None


def runs(classes: Tensor) -> list[list[int]]:
    """A map of classes `(H, W)` as `[class, length]` of its runs, row after row; see `decode_runs`."""
    values, lengths = classes.flatten().unique_consecutive(return_counts=True)
    return torch.stack([values, lengths], dim=1).tolist()


def decode_runs(runs: Sequence[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """The map of classes `(H, W)` that a row of `predictions.jsonl` holds as `prediction` (or `target`) and `shape`.

    Example:
        >>> decode_runs([[0, 3], [7, 1]], [2, 2]).tolist()
        [[0, 0], [0, 7]]
    """
    values, lengths = torch.tensor(runs).unbind(dim=1)
    return values.repeat_interleave(lengths).view(*shape)
