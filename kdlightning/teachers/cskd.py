"""Another sample of the same class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.taps import TapReader
from kdlightning.tasks import Task
from kdlightning.teachers.base import SelfTeacher

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class CSKD(SelfTeacher):
    """Class-wise self-knowledge distillation (Yun et al., CVPR 2020).

    Term `cskd`: T² · (1/B) Σ_i KL(softmax(z(x'_i)/T) ‖ softmax(z(x_i)/T)), where x'_i is another sample of the class of
    x_i, drawn anew in each epoch, and its answer is a constant. Default weights: task 1, cskd 1; the task's loss is
    that of x alone. As in the authors' code the network answers to the partners after the batch, without gradient and
    in training mode: dropout is drawn, and their statistics move the running ones of batch norms a second time.

    Defaults are the authors': T = 4 and weight 1 (their code has 3 for fine-grained data). Their sampler draws from the
    whole class, so that now and then a sample is its own partner; here it is only where it is alone in its class.

    Our DataModules give partners by themselves; other loaders need `IndexedViews(data, partners=True)`.

    Args:
        temperature: T of both softmaxes.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "cskd": 1.0}
    reads_partners: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"CSKD: temperature must be positive, not {temperature}")
        self.temperature = temperature
        self._student: TapReader | None = None

    def bind(self, student: nn.Module, task: Task) -> None:
        """Takes the network that answers to the partners."""
        if task.num_classes is None or not task.class_probabilities:
            raise ConfigurationError("CSKD compares samples of one class: it needs a task such as Classification")
        self._student = TapReader(student)  # no module: the student is not the teacher's own

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: the partners are asked by the term itself, and not at all while it rests."""
        return ModelOutput()

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The pull towards the partners' answers."""
        if self._student is None or not active(self.name):
            return {}
        if step.batch.partners is None:
            raise ConfigurationError(
                "CSKD needs another sample of each one's class: wrap the data set with "
                "kdlightning.IndexedViews(data, partners=True)"
            )
        with torch.no_grad():
            partners = self._student(step.batch.partners)
        return {self.name: kd_loss(step.student.logits, partners.logits, temperature=self.temperature)}
