"""The student's own average."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.online import mean_squared_probability_loss
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.teachers.base import NetworkTeacher, SelfTeacher, teacher_inputs


class MeanTeacher(NetworkTeacher, SelfTeacher):
    """Mean teacher (Tarvainen & Valpola, 2017): θ' ← α·θ' + (1−α)·θ after each optimizer step.

    Term `mean_teacher`: mean squared difference of the two networks' probabilities, over samples and classes. The
    average is true from the first step on: α_k = min(decay, 1 − 1/(k+1)), as in the authors' code. Buffers (batch-norm
    statistics) are copied from the student. The teacher sees `teacher_inputs` if the task gives them, else the second
    view if the data module makes one (`views: 2`), else the student's inputs; it stays in training mode, so dropout and
    batch statistics are noise of its own, as the authors have it. Feature and relation callbacks can read it.

    The paper ramps the weight up and uses values around 100 for this mean form with few labels; the default here is
    task 1, mean_teacher 1: set `weights: {mean_teacher: {class_path: kdlightning.SigmoidRampUp, …}}` for theirs.

    Args:
        decay: α, 0 to 1.
    """

    reads_student: ClassVar[bool] = False
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "mean_teacher": 1.0}

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigurationError(f"MeanTeacher: decay must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.average: nn.Module = nn.Identity()

    @property
    def network(self) -> nn.Module:
        """The average of the student."""
        return self.average

    def bind(self, student: nn.Module, task: Task) -> None:
        """Copies the student."""
        if task.counts_tokens or not task.class_probabilities:
            raise ConfigurationError(
                f"MeanTeacher compares probabilities of classes; it has no form for {type(task).__name__}"
            )
        self.average = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """The average's answer."""
        second = batch.teacher_inputs is None and self.training and len(batch.views) > 0
        return self.reader(batch.views[0] if second else teacher_inputs(batch), logits=logits)

    def loss(self, student: ModelOutput, teacher: ModelOutput, batch: Batch, progress: float, epoch: float) -> Tensor:
        """Mean squared difference of probabilities."""
        return mean_squared_probability_loss(student.logits, teacher.logits)

    @torch.no_grad()
    def after_optimizer_step(self, student: nn.Module, step: int) -> None:
        """Moves the average towards the student."""
        rate = 1 - min(self.decay, 1 - 1 / (step + 1))
        ours = [p.detach() for p in student.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), ours, rate)
        for mine, theirs in zip(self.average.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)
