"""Another distortion of the same sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.two_views import mean_discrepancy_loss, mutual_kl_loss
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities
from kdlightning.teachers.base import SelfTeacher

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class DataDistortion(SelfTeacher):
    """Data-distortion guided self-distillation (Xu & Liu, AAAI 2019).

    The network sees two distortions of each sample and learns from both. Term `data_distortion`:
    T²/2 · (1/B) Σ_i [KL(p(x''_i) ‖ p(x'_i)) + KL(p(x'_i) ‖ p(x''_i))], the leading probabilities of each divergence
    detached. Term `data_distortion_mmd`: ‖mean_i f(x'_i) − mean_i f(x''_i)‖², f the vectors before the classifier, with
    gradient into both. Default weights: task 1, data_distortion 1, data_distortion_mmd 0.0005.

    Cross-entropies and divergences are means over the views, half of their sum, as a run on labels alone has them; this
    form was checked against public code and not against the paper's text. That code (Self-KD-Lib), whose 0.0005 is
    taken over, detaches the leading probabilities as here, but squares the difference of two single numbers, the means
    over batch and features alike.

    The views must differ, or both terms are zero (a warning says so): data without augmentation of their own want
    `strong_views: true`.

    Args:
        temperature: T of the probabilities; 1 compares those of the network itself.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {
        "task": 1.0,
        "data_distortion": 1.0,
        "data_distortion_mmd": 5e-4,
    }
    views: ClassVar[int] = 2

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"DataDistortion: temperature must be positive, not {temperature}")
        self.temperature = temperature
        self._looked = False

    def forget(self) -> None:
        """Another fit may have other data."""
        self._looked = False

    @property
    def exit_taps(self) -> Sequence[str]:
        """The vectors before the classifier; nothing is attached to them."""
        return ("pre_logits",)

    def bind(self, student: nn.Module, task: Task) -> None:
        """Refuses tasks without class probabilities."""
        check_class_probabilities("DataDistortion", task)

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: the terms compare the student's answers with each other."""
        return ModelOutput()

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The divergences between the views, and the distance of their mean features."""
        first, second = step.student_views
        if not self._looked:
            self._look(step.parts[0].inputs, step.parts[1].inputs)
        found = {}
        if active(self.name):
            found[self.name] = mutual_kl_loss(first.logits, second.logits, temperature=self.temperature)
        if active(f"{self.name}_mmd"):
            features = [self.feature(view, "pre_logits") for view in (first, second)]
            found[f"{self.name}_mmd"] = mean_discrepancy_loss(*features)
        return found

    def _look(self, first: Any, second: Any) -> None:
        """Warns in a fit's first step if the views are no different."""
        self._looked = True
        if isinstance(first, Tensor) and torch.equal(first, second):
            warnings.warn(
                "DataDistortion: both views of the first batch are the same, and its terms are zero: augment the data, "
                "or set strong_views: true",
                stacklevel=2,
            )
