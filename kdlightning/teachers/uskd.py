"""Soft labels of the student's own making."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.customized_labels import smoothed_target_loss, zipf_loss
from kdlightning.losses.numerics import widened
from kdlightning.models.exits import PooledClassifier
from kdlightning.models.output import ModelOutput
from kdlightning.models.parts import Parts
from kdlightning.taps import TapInfo
from kdlightning.tasks import Task
from kdlightning.teachers.base import SelfTeacher

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class USKD(SelfTeacher):
    """Universal self-knowledge distillation (Yang et al., ICCV 2023).

    A weak head, the mean over all positions and a linear layer, is attached to a tap inside. Terms:

    * `uskd`: −(1/B) Σ_i (1 + p_i² − mean_j p_j²) · log p_i, p_i the probability of the label, its squares constant;
    * `uskd_others`: cross-entropy of the softmax over the classes other than the label with labels 1/rank (Zipf's law),
      the rank that of p_c/(1 − p_y) + w_c/(1 − w_y), w the weak head's probabilities; see `zipf_labels`;
    * `uskd_weak`: the weak head's cross-entropy with the label, smoothed by `smoothing`; it moves the layers in front
      of the tap too, as in the authors' code.

    Default weights: task 1, uskd 1 (α), uskd_others 0.1 (β), uskd_weak 0.005 (μ), the authors' on ImageNet; on
    CIFAR-100 their configuration has 0.1 for all three. Departures from their code: ranks are of probabilities, where
    it adds the student's log-probabilities to the weak head's probabilities; soft targets (mixup), of which it takes
    the two largest entries, are refused; of tokens the mean over the patches is read, where it takes the class token.

    The weak head is a network of the run, "exit1", scored as `val/acc_exit1`; exports do not hold it.

    Args:
        tap: where the weak head begins; the authors take the last but one stage of a convolutional network (`layer3`),
            and the third block of a vision transformer.
        smoothing: share of the uniform distribution in the weak head's labels.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "uskd": 1.0, "uskd_others": 0.1, "uskd_weak": 0.005}

    def __init__(self, tap: str, smoothing: float = 0.1) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigurationError(f"USKD: smoothing must be at least 0 and below 1, not {smoothing}")
        self.tap = tap
        self.smoothing = smoothing
        self.num_classes = 0
        self.parts = Parts()

    def bind(self, student: nn.Module, task: Task) -> None:
        """Takes the number of classes from the task."""
        if task.num_classes is None or task.monitor != "val/acc":
            raise ConfigurationError("USKD needs a task with one class a sample, such as Classification")
        self.num_classes = task.num_classes

    @property
    def exit_taps(self) -> Sequence[str]:
        """Where the weak head begins."""
        return (self.tap,)

    def build_exits(self, infos: Mapping[str, TapInfo]) -> None:
        """Builds the weak head, once."""
        super().build_exits(infos)
        if not len(self.parts):
            self.parts["exit1"] = PooledClassifier(self.exit_shape(self.tap)[1], self.num_classes)

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The weak head."""
        return dict(zip([self.tap], self.parts.values(), strict=False))

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: the soft labels follow from the answers of student and weak head."""
        return ModelOutput()

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The parts of the target, of the other classes, and of the weak head."""
        target = step.batch.target
        if target is None or target.ndim != 1:
            raise ConfigurationError("USKD needs one class number a sample; it has no form for soft (mixed) targets")
        student, weak = step.student.logits, step.exits[0].logits
        found = {}
        if active("uskd"):
            found["uskd"] = smoothed_target_loss(student, target)
        if active("uskd_others"):
            found["uskd_others"] = zipf_loss(student, weak, target)
        if active("uskd_weak"):
            found["uskd_weak"] = functional.cross_entropy(widened(weak), target, label_smoothing=self.smoothing)
        return found
