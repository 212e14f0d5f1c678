"""A trained teacher, a student that learns from it."""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.response import DKD, KD
from kdlightning.losses.token_terms import ForwardKL
from kdlightning.modules.base import DistillModule
from kdlightning.schedules import Weight
from kdlightning.tasks import Task
from kdlightning.teachers import Teacher, as_teacher


class OfflineDistillation(DistillModule):
    """Offline distillation: a frozen, trained teacher supplies targets.

    Terms: `task`, and the response's (`kd` by default). Callbacks add feature and relation terms; subclasses add terms
    of their own by `distill_terms`. The default response is `KD(temperature=4)` with task 0.1 and kd 0.9 (Hinton et
    al., 2015, with the weights of the CRD benchmark), or `ForwardKL()` for language models.

    Args:
        student: the network that is trained and shipped.
        teacher: a trained network, or a `Teacher`. None loads a checkpoint without one, for prediction and export.
        response: the loss on logits. "default" is described above; None leaves it out.
        task: what batches and outputs mean.
        optimizer: makes the optimizer from parameters; AdamW with learning rate 1e-3 by default.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name, numbers or schedules, merged over the defaults of the methods.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None = None,
        *,
        task: Task,
        response: ResponseLoss | str | None = "default",
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        weights: dict[str, Weight] | None = None,
    ) -> None:
        super().__init__(
            student,
            task=task,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            weights=weights,
        )
        if isinstance(response, str):
            if response != "default":
                raise ConfigurationError(f"response must be a loss such as KD(), null or default, not {response!r}")
            response = ForwardKL() if task.counts_tokens else KD()
        if isinstance(response, (KD, DKD)) and not task.class_probabilities:
            raise ConfigurationError(
                f"{type(response).__name__} compares probabilities of classes, and {type(task).__name__} has none: "
                "give a response of your own, or response=None (null in YAML) with callbacks or distill_terms"
            )
        if student in (teacher, getattr(teacher, "network", None)):
            raise ConfigurationError("teacher and student are the same object: build two networks")
        self.teacher = as_teacher(teacher)
        self.response = response

    def setup(self, stage: str) -> None:
        """See `DistillModule.setup`; a fit needs the teacher."""
        if stage == "fit" and self.teacher is None:
            raise ConfigurationError(
                "teacher is None: give one to train; without it a checkpoint can predict and export"
            )
        super().setup(stage)
