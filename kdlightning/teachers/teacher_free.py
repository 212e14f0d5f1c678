"""A teacher written by hand."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.virtual_teacher import check_accuracy, virtual_teacher_loss
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.teachers.base import SelfTeacher


class TeacherFree(SelfTeacher):
    """Teacher-free knowledge distillation, regularised form (Tf-KD_reg; Yuan et al., CVPR 2020).

    A virtual teacher gives the right class the probability a and shares 1 − a among the others. Term `teacher_free`:
    T² · (1/B) Σ_i KL(qᵀ_i ‖ softmax(z_i/T)), qᵀ ∝ q^(1/T). Default weights: task 0.9, teacher_free 0.1, the paper's
    1 − α and α with the α of the authors' ImageNet code and of their ResNet-18 on CIFAR-100 (0.95 for small networks).

    Departures: the paper writes no T², neither here nor in its formula of distillation, whose code has it. The authors'
    CIFAR code softens the teacher alone (`soften_student: false`; they found it to work better there), takes the
    softmax of the probabilities q/T in place of the logits log q/T, which with 100 classes amounts to T ≈ 186 in place
    of 20, and means the divergence over classes too, with a multiplier of up to 100 to make up for it.

    The self form, a network that learns from its own trained copy, is the recipe `teacher_free_self`.

    Args:
        accuracy: a, above chance and below 1; the paper has 0.99.
        temperature: T; the paper has 20 or more.
        soften_student: False compares qᵀ with the student's probabilities at temperature 1, without T².
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 0.9, "teacher_free": 0.1}

    def __init__(self, accuracy: float = 0.99, temperature: float = 20.0, soften_student: bool = True) -> None:
        super().__init__()
        if not 0 < accuracy < 1:
            raise ConfigurationError(f"TeacherFree: accuracy must be above 0 and below 1, not {accuracy}")
        if not temperature > 0:
            raise ConfigurationError(f"TeacherFree: temperature must be positive, not {temperature}")
        self.accuracy = accuracy
        self.temperature = temperature
        self.soften_student = soften_student

    def bind(self, student: nn.Module, task: Task) -> None:
        """Refuses tasks without one class a sample, and a teacher no better than chance."""
        if task.num_classes is None or task.monitor != "val/acc":
            raise ConfigurationError("TeacherFree needs a task with one class a sample, such as Classification")
        try:
            check_accuracy(self.accuracy, task.num_classes)
        except ValueError as error:
            raise ConfigurationError(f"TeacherFree: {error}") from error

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: what the virtual teacher says follows from the labels."""
        return ModelOutput()

    def loss(self, student: ModelOutput, teacher: ModelOutput, batch: Batch, progress: float, epoch: float) -> Tensor:
        """The divergence from the virtual teacher."""
        if batch.target is None or batch.target.ndim != 1:
            raise ConfigurationError("TeacherFree needs one class number a sample; it has no form for soft targets")
        return virtual_teacher_loss(
            student.logits,
            batch.target,
            accuracy=self.accuracy,
            temperature=self.temperature,
            soften_student=self.soften_student,
        )
