"""The last mini-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch, moved
from kdlightning.errors import ConfigurationError
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities
from kdlightning.teachers.base import SelfTeacher

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class DLB(SelfTeacher):
    """Self-distillation from the last mini-batch (Shen et al., CVPR 2022).

    Each step shows the batch's samples together with those of the batch before it, under a second augmentation. Term
    `dlb`: T² · (1/B) Σ_i KL(softmax(zᵒ_i/T) ‖ softmax(z_i/T)) over the samples of the last batch, where zᵒ is what the
    network said of them one step ago. The task's loss is the mean over all samples shown. The first step of a run has
    nothing to look back at; later epochs begin with the last batch of the epoch before, as in the authors' code.
    Default weights: task 1, dlb 1 (α). α = 1 and T = 3 are quoted from the paper's runs on CIFAR; the code has none.

    As in the paper half of what a step shows is the last mini-batch, in one pass, so batch norms take their statistics
    over both halves; the authors' code makes two passes. Under gradient accumulation a micro-batch is a batch: zᵒ may
    then be of the same weights, and differ by augmentation and noise alone.

    Inputs, targets and logits of the last batch are in the checkpoint, about as large as a batch. Each rank of several
    has its own; a checkpoint holds those of rank 0, so a resumed run on several ranks begins without, as at its start.

    Args:
        temperature: T of both softmaxes.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "dlb": 1.0}
    views: ClassVar[int] = 2

    def __init__(self, temperature: float = 3.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"DLB: temperature must be positive, not {temperature}")
        self.temperature = temperature
        self._last: dict[str, Any] = {}

    def bind(self, student: nn.Module, task: Task) -> None:
        """Refuses tasks without class probabilities."""
        check_class_probabilities("DLB", task)

    def forget(self) -> None:
        """Nothing was before the first step."""
        self._last = {}

    def start(self, samples: int, epochs: int, device: Any) -> None:
        """Brings what a checkpoint held to the device; several ranks begin anew, since it was one rank's."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._last = {} if several and torch.distributed.get_world_size() > 1 else moved(self._last, device)

    def shown(self, batch: Batch) -> list[Batch]:
        """The batch, and the last one under its second augmentation."""
        if not self._last:
            return [batch]
        last = Batch(self._last["inputs"], self._last["target"], size=len(self._last["logits"]))
        return [batch, last]

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: what the network said a step ago is read by the term itself."""
        return ModelOutput()

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The pull towards what was said of the last batch's samples; zero in the first step."""
        if not active(self.name):
            return {}
        if len(step.student_views) < 2:
            return {self.name: 0.0 * step.student.logits.sum()}
        return {self.name: kd_loss(step.student_views[1].logits, self._last["logits"], temperature=self.temperature)}

    def remember(self, step: DistillStep) -> None:
        """Keeps the batch for the next step."""
        # A copy: the logits are a part of a larger tensor, all of which a checkpoint would hold.
        logits = step.student.logits.detach().clone()
        self._last = {"inputs": step.batch.views[0], "target": step.batch.target, "logits": logits}

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint holds of the last batch; empty before the first step."""
        return dict(self._last)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes it over."""
        self._last = dict(state)
