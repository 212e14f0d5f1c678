"""Several augmentations of each sample in one step: each network runs once, on all of them together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import ResponseLoss
from kdlightning.modules.step import DistillStep

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule


class ViewsMixin:
    """How `DistillModule` serves a response that reads several views of each sample.

    One forward pass of each network sees all views, so batch norms take their statistics over them together. The task's
    loss is the mean over the views; taps, terms of one's own and evaluation see the first view alone.
    """

    runs_views: ClassVar[bool] = True
    """Whether the mode can run several views; one that cannot refuses a response that reads them."""

    @property
    def reads_views(self: DistillModule) -> Any:  # type: ignore[misc]
        """Who reads further views of the samples, with attributes `views` and `strong_views`; None if nobody does."""
        return self.response

    @property
    def views(self: DistillModule) -> int:  # type: ignore[misc]
        """Views of each sample that a training step reads."""
        return 1 if self.reads_views is None else self.reads_views.views

    def _ask_for_views(self: DistillModule) -> None:  # type: ignore[misc]
        """Tells our DataModules, before they make loaders, what is read; looks whether other loaders give it."""
        count, reader, response = self.views, self.reads_views, self.response
        if response is not None and response.views > 1 and (response is not reader or not self.runs_views):
            raise ConfigurationError(
                f"{type(response).__name__} reads {response.views} views of each sample, and {type(self).__name__} "
                "runs one: use OfflineDistillation"
            )
        partners = getattr(reader, "reads_partners", False)
        ask = getattr(getattr(self.trainer, "datamodule", None), "ask_for_views", None)
        if ask is not None:
            ask(count, strong=reader is not None and reader.strong_views, partners=partners)
        if count > 1 or partners:
            self.check_views(self.sample_batch())

    def check_views(self: DistillModule, batch: Batch) -> None:  # type: ignore[misc]
        """Raises ConfigurationError if a batch lacks views that are read."""
        name = type(self.reads_views).__name__
        if len(batch.views) + 1 < self.views:
            raise ConfigurationError(
                f"{name} reads {self.views} views of each sample, and this loader gives {len(batch.views) + 1}: give "
                f"kdlightning.resumable(kdlightning.IndexedViews(data, views={self.views}))"
            )
        if getattr(self.reads_views, "reads_partners", False) and batch.partners is None:
            raise ConfigurationError(
                f"{name} reads another sample of each one's class, which this loader does not give: give "
                "kdlightning.resumable(kdlightning.IndexedViews(data, partners=True))"
            )
        if self.views > 1 and batch.teacher_inputs is not None:
            raise ConfigurationError(
                f"{name} reads {self.views} views of each sample, and the teacher's own inputs have one: let the "
                "teacher read the student's"
            )

    def shown(self: DistillModule, batch: Batch) -> list[Batch]:  # type: ignore[misc]
        """What a training step runs together, the batch itself first: by default all views that are read."""
        if self.views == 1:
            return [batch]
        self.check_views(batch)
        # A batch may hold more views than are read.
        return [replace(batch, inputs=inputs) for inputs in (batch.inputs, *batch.views[: self.views - 1])]

    def task_term(self: DistillModule, step: DistillStep) -> Tensor:  # type: ignore[misc]
        """The task's loss, a mean over all samples that were run together."""
        if not step.student_views:
            return self.task.loss(step.student, step.batch)
        losses = [
            part.size * self.task.loss(output, part)
            for output, part in zip(step.student_views, step.parts, strict=True)
        ]
        return sum(losses[1:], losses[0]) / sum(part.size for part in step.parts)

    def respond_to_views(self: DistillModule, response: ResponseLoss, step: DistillStep) -> Tensor:  # type: ignore[misc]
        """A response loss between lists of the answers to each view."""
        options = {"batch": step.batch, "progress": step.progress}
        if response.reads == "output":
            return response(step.student_views, step.teacher_views, **options)
        ours = [output.logits for output in step.student_views]
        theirs = [output.logits for output in step.teacher_views]
        check_same_classes(response, ours[0], theirs[0])
        return response(ours, theirs, **options)


def check_same_classes(response: ResponseLoss, student: Tensor, teacher: Tensor) -> None:
    """Raises ConfigurationError unless two answers have one shape."""
    if student.shape != teacher.shape:
        raise ConfigurationError(
            f"{type(response).__name__}: the student gives logits {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}: the class counts differ; use the same, or a label_map of FrozenTeacher"
        )
