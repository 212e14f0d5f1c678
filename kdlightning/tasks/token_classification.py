"""One class a word of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task
from kdlightning.tasks.causal_lm import IGNORED
from kdlightning.tasks.entities import EntityF1


class TokenClassification(Task):
    """A class for each word, named entities or parts of speech, with cross-entropy; logits `(B, T, C)`.

    Targets are `(B, T)` class numbers, -100 where a token does not count: padding, special tokens, and the later pieces
    of a word, as `TokenTags` gives them. The loss is the mean over the counted tokens of a batch; `val/loss` is that of
    the whole set.

    Metrics, over the counted tokens: `acc`; `f1`, the mean of the classes' F1 (classes that occur in neither targets
    nor predictions left out); with `tags` also `entity_f1`, over whole entities, see `EntityF1`; against a teacher
    `agreement` and `kl` (temperature 1).

    Response losses such as `KD` compare the networks token by token: each counted token is a row `(tokens, C)`, as if
    it were a sample; in a batch without targets every token that is attended to.

    Args:
        num_classes: number of classes.
        tags: the classes' names in the order of their numbers, for `entity_f1`; `O`, `B-…` and `I-…`.
    """

    monitor: ClassVar[str] = "val/f1"
    monitor_mode: ClassVar[str] = "max"
    dense: ClassVar[bool] = True
    answers: ClassVar[str] = "word"

    def __init__(self, num_classes: int, tags: Sequence[str] | None = None) -> None:
        if num_classes < 2:
            raise ConfigurationError(f"TokenClassification: num_classes must be at least 2, not {num_classes}")
        if tags is not None:
            if len(tags) != num_classes:
                raise ConfigurationError(
                    f"TokenClassification: there are {len(tags)} tags and num_classes is {num_classes}: make them agree"
                )
            EntityF1(tags)  # refuses what it cannot read
        self.num_classes: int = num_classes
        self.tags = None if tags is None else list(tags)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean cross-entropy over the counted tokens; 0 if there are none."""
        logits, target = self._counted_rows(output, batch)
        return functional.cross_entropy(logits, target, reduction="sum") / max(len(target), 1)

    def count(self, batch: Batch) -> Tensor | int:
        """Counted tokens."""
        return self._mask(batch).sum()

    def rows(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """The counted tokens of both as rows, with their classes."""
        self._check(student, batch)
        mask = self._mask(batch)
        if teacher.shape[:2] != mask.shape:
            raise ConfigurationError(
                f"the teacher gives logits of shape {tuple(teacher.shape)} for {tuple(mask.shape)} tokens: give it the "
                "student's tokenizer, and the architecture AutoModelForTokenClassification"
            )
        target = None if batch.target is None else batch.target[mask]
        return student[mask], teacher[mask], replace(batch, target=target)

    def metrics(self) -> dict[str, Metric]:
        """`acc`, `f1`, and `entity_f1` if the tags are named."""
        options: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}
        found: dict[str, Metric] = {
            "acc": MulticlassAccuracy(self.num_classes, average="micro", **options),
            "f1": MulticlassF1Score(self.num_classes, average="macro", **options),
        }
        return found if self.tags is None else {**found, "entity_f1": EntityF1(self.tags)}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to the metrics."""
        self._check(output.logits, batch)
        prediction, target = output.logits.argmax(dim=2), self.with_target(batch)
        for name in ("acc", "f1"):
            metrics[name].update(prediction, target)
        if self.tags is not None:
            mask = self._mask(batch)
            metrics["entity_f1"].update(prediction[mask], target[mask], mask.nonzero()[:, 0])

    def comparison(self) -> dict[str, Metric]:
        """`agreement` and `kl`."""
        return {"agreement": WeightedMean(), "kl": WeightedMean()}

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """Two answers of one shape `(B, T, C)`."""
        return student.logits.ndim == 3 and student.logits.shape == teacher.logits.shape

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `agreement` and `kl`."""
        ours, theirs, _ = self.rows(widened(student.logits), widened(teacher.logits), batch)
        metrics["agreement"].update((ours.argmax(dim=1) == theirs.argmax(dim=1)).float())
        ours, theirs = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
        metrics["kl"].update((theirs.exp() * (theirs - ours)).sum(dim=1))

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """For each text the most probable class of each counted token, its probability, and the true class."""
        self._check(output.logits, batch)
        mask = self._mask(batch)
        counts = mask.sum(dim=1).tolist()
        probability, prediction = widened(output.logits[mask]).softmax(dim=1).max(dim=1)
        target: Any = [None] * len(counts) if batch.target is None else batch.target[mask].split(counts)
        return [
            {"prediction": p.tolist(), "probability": q.tolist(), "target": None if t is None else t.tolist()}
            for p, q, t in zip(prediction.split(counts), probability.split(counts), target, strict=True)
        ]

    def _counted_rows(self, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `(N, C)` and classes `(N,)` of the counted tokens."""
        self._check(output.logits, batch)
        target, mask = self.with_target(batch), self._mask(batch)
        return widened(output.logits[mask]), target[mask]

    def _check(self, logits: Tensor, batch: Batch) -> None:
        if logits.ndim != 3 or logits.shape[2] != self.num_classes:
            raise ConfigurationError(
                f"the model gives logits of shape {tuple(logits.shape)} and the task, which reads (batch, tokens, "
                f"classes), has num_classes={self.num_classes}: make the two agree"
            )
        if batch.target is not None and batch.target.shape != logits.shape[:2]:
            raise ConfigurationError(
                f"TokenClassification needs a class for each of the {tuple(logits.shape[:2])} tokens, and the targets "
                f"are {tuple(batch.target.shape)}"
            )

    def _mask(self, batch: Batch) -> Tensor:
        """`(B, T)`, True where a token counts."""
        if batch.target is not None:
            return batch.target != IGNORED
        attended = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
        if not isinstance(attended, Tensor):
            raise ConfigurationError("TokenClassification needs labels, or an attention_mask among the inputs")
        return attended != 0
