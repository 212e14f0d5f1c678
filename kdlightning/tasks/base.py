"""What a batch and an output mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric

from kdlightning.data.batch import Batch, LoadedBatch
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.output import ModelOutput


class Task:
    """Base of all tasks: reads a loader's batch, gives the hard-label loss, the metrics and the prediction.

    A loader may yield `(x, y)`, `x` alone, a mapping with `labels` (as transformers collates it) and perhaps `tags`, a
    `Batch`, or any of these inside a `LoadedBatch`.

    Attributes:
        monitor: the metric by which the best checkpoint is chosen.
        monitor_mode: "max" or "min".
        counts_tokens: True for language-model tasks: losses are sums over the counted tokens of a micro-batch, divided
            once by the tokens of the whole accumulation window on all ranks.
        num_classes: number of classes, or None.
        class_probabilities: False if the outputs' softmax over the last dimension means nothing; methods that compare
            probabilities of classes then refuse the task.
        label_probabilities: True if each output's sigmoid is the probability of a label of its own.
        wants_hidden: True if networks should give `hidden` and `head` rather than full logits.
        dense: True if there is an answer for each pixel or word, and not one a sample: `rows` lays them out for
            responses.
        answers: what there is one answer for, in messages.
        has_loss: False if the task has no loss of its own: there is no term `task` then, and no `val/loss`.
    """

    monitor: ClassVar[str] = "val/loss"
    monitor_mode: ClassVar[str] = "min"
    counts_tokens: ClassVar[bool] = False
    class_probabilities: ClassVar[bool] = True
    label_probabilities: ClassVar[bool] = False
    wants_hidden: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    answers: ClassVar[str] = "pixel"
    has_loss: ClassVar[bool] = True
    num_classes: int | None = None

    def batch(self, raw: Any) -> Batch:
        """What the loader yielded, in the one form that everything else sees."""
        if isinstance(raw, Batch):
            return raw
        if isinstance(raw, LoadedBatch):
            inner = self.batch(raw.data)
            views = tuple(self.batch(view).inputs for view in raw.views)
            partners = None if raw.partners is None else self.batch(raw.partners).inputs
            return replace(inner, index=raw.index, view=raw.view, views=views, partners=partners)
        inputs, target = self.split(raw)
        tags = raw.get("tags") if isinstance(raw, Mapping) else None
        return Batch(inputs, target, mask=self.mask(inputs, target), tags=tags, size=_size(inputs))

    def split(self, raw: Any) -> tuple[Any, Any]:
        """Inputs and target of a bare batch."""
        if isinstance(raw, Mapping):
            inputs = {name: value for name, value in raw.items() if name not in ("labels", "label", "tags")}
            target = raw.get("labels", raw.get("label"))
            return inputs, target
        if isinstance(raw, (tuple, list)) and len(raw) == 2:
            return raw[0], raw[1]
        if isinstance(raw, Tensor):
            return raw, None
        raise ConfigurationError(
            f"{type(self).__name__} reads (inputs, target) pairs or mappings with 'labels', and the loader yielded "
            f"{type(raw).__name__}; override {type(self).__name__}.split for other batches"
        )

    def mask(self, inputs: Any, target: Any) -> Tensor | None:
        """`(B, T)`, 1 where a token counts; None where everything counts."""
        return None

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The hard-label loss: a mean over samples, or for `counts_tokens` the sum over counted tokens."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(output, batch)")

    def count(self, batch: Batch) -> Tensor | int:
        """What a mean divides by: samples, or counted tokens."""
        return batch.size

    def rows(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """What a response loss is given: both logits with an answer a row, and a batch with as many targets."""
        return student, teacher, batch

    def distilled(self, batch: Batch) -> Batch:
        """What a response loss on whole outputs is given: the batch, whose `mask` says which tokens it counts.

        Another mask than the task's own makes the response's sum over tokens their mean, times the task's counted
        tokens.
        """
        return batch

    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics by their short name, for example `{"acc": …}`."""
        return {}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to the metrics."""

    def comparison(self) -> dict[str, Metric]:
        """Fresh metrics that compare a student with its teacher, for example `{"agreement": …, "kl": …}`."""
        return {}

    def comparable(self, student: ModelOutput, teacher: ModelOutput) -> bool:
        """Whether `compare` can be asked: two answers of one shape, by default."""
        # A single number a sample may come as (B,) from one network and as (B, 1) from the other.
        return self.counts_tokens or student.logits.squeeze(-1).shape == teacher.logits.squeeze(-1).shape

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to the metrics of `comparison`."""

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """One plain dictionary a sample: `prediction`, `probability`, `target`."""
        raise ConfigurationError(f"{type(self).__name__} has no predictions to write")

    def with_target(self, batch: Batch) -> Tensor:
        """The batch's target, or a sentence that it has none."""
        if batch.target is None:
            raise ConfigurationError(f"{type(self).__name__} needs labels, and the loader yielded none")
        return batch.target


def check_metrics(owner: str, wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The further metrics that somebody asked for, each once; raises ConfigurationError for one that is not known."""
    for name in wanted:
        if name not in known:
            raise ConfigurationError(f"{owner}: metrics are {', '.join(known)}, not {name!r}{nearest(name, known)}")
    return tuple(dict.fromkeys(wanted))


def check_class_probabilities(owner: str, task: Task) -> None:
    """Raises ConfigurationError for a task whose answers are no probabilities of classes, which a method compares."""
    if task.num_classes is None or not task.class_probabilities:
        raise ConfigurationError(f"{owner} compares class probabilities: it needs a task such as Classification")


def _size(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return inputs.shape[0]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((value.shape[0] for value in values if isinstance(value, Tensor)), 0)
