"""A trained teacher, a student that learns from it."""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.response.kd import KD
from kdlightning.losses.token_terms import ForwardKL, TokenDivergence
from kdlightning.modules.base import DistillModule
from kdlightning.schedules import Weight
from kdlightning.tasks import Task
from kdlightning.teachers import EnsembleTeacher, SelfTeacher, Teacher, as_teacher


def check_response(response: ResponseLoss | None, task: Task) -> None:
    """Raises ConfigurationError for a response that means nothing for a task."""
    name, kind = type(response).__name__, type(task).__name__
    if isinstance(response, TokenDivergence) and not task.counts_tokens:
        raise ConfigurationError(f"{name} sums over tokens, and {kind} has none: give KD(), or the task CausalLM")
    if response is not None and task.dense and (response.reads != "logits" or response.reads_fields):
        read = " and ".join(sorted(response.reads_fields)) or "whole outputs"
        raise ConfigurationError(
            f"{name} reads {read} of samples, and {kind} has an answer for each {task.answers}: give KD()"
        )
    if response is not None and task.dense and response.views > 1:
        raise ConfigurationError(
            f"{name} compares whole samples, and {kind} has an answer for each {task.answers}: give KD()"
        )
    if response is None or response.compares == "any":
        return
    if response.compares == "labels" and not task.label_probabilities:
        raise ConfigurationError(
            f"{name} compares probabilities of labels, each yes or no, and {kind} has none: give KD()"
        )
    if response.compares == "classes" and task.counts_tokens:
        raise ConfigurationError(f"{name} compares one answer a sample, and {kind} has many: give ForwardKL()")
    if response.compares == "classes" and not task.class_probabilities:
        other = "MultiLabelKD()" if task.label_probabilities else "a response of your own"
        raise ConfigurationError(
            f"{name} compares probabilities of classes, and {kind} has none: give {other}, or "
            "response=None (null in YAML) with callbacks or distill_terms"
        )


def check_apart(student: nn.Module, teacher: Teacher | nn.Module | None) -> None:
    """Raises ConfigurationError if two networks are one, or share parameters, which freezing would freeze in both."""
    own = {id(parameter): name for name, parameter in student.named_parameters()}
    members = teacher.members if isinstance(teacher, EnsembleTeacher) else [teacher]
    for member in members:
        network = getattr(member, "network", member)
        if student is network:
            raise ConfigurationError("teacher and student are the same object: build two networks")
        parameters = network.parameters() if isinstance(network, nn.Module) else ()
        shared = [own[id(parameter)] for parameter in parameters if id(parameter) in own]
        if shared:
            raise ConfigurationError(
                f"teacher and student share {len(shared)} parameters, {shared[0]!r} among them: build two networks, or "
                "copy.deepcopy what both need"
            )


def teacher_of(student: nn.Module, teacher: Teacher | nn.Module | None, task: Task) -> Teacher | None:
    """A trained teacher for a student.

    Raises:
        ConfigurationError: it shares parameters with the student, is made of it, or does not fit the task.
    """
    check_apart(student, teacher)
    if isinstance(teacher, SelfTeacher):
        raise ConfigurationError(f"{type(teacher).__name__} makes a teacher of the student: use SelfDistillation")
    made = as_teacher(teacher)
    if made is not None:
        made.check_task(task)
    return made


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
        check_response(response, task)
        self.teacher = teacher_of(student, teacher, task)
        self.response = response

    def setup(self, stage: str) -> None:
        """See `DistillModule.setup`; a fit needs the teacher."""
        if stage == "fit" and self.teacher is None:
            raise ConfigurationError(
                "teacher is None: give one to train; without it a checkpoint can predict and export"
            )
        super().setup(stage)
