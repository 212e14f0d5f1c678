"""The student's own past."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.online import soft_cross_entropy
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.teachers.base import SelfTeacher


class PSKD(SelfTeacher):
    """Progressive self-knowledge distillation (Kim et al., ICCV 2021).

    Term `pskd`: cross-entropy with the target (1−α_t)·onehot + α_t·p, where p is what the student said of the sample in
    the previous epoch and α_t = alpha·(e+1)/E in epoch e of E. In the first epoch, and for a sample that was not seen
    before, the target is the label alone. Default weights: task 0, pskd 1, since the label is in the target.

    The previous answers are a table `(N, C)` in float32 on the device and in the checkpoint; samples are told apart by
    `Batch.index`. Under DDP the ranks' tables are merged at each epoch's end.

    Args:
        alpha: share of the past at the last epoch, 0 to 1.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 0.0, "pskd": 1.0}
    reads_fields: ClassVar[frozenset[str]] = frozenset({"index"})
    rank_local: ClassVar[frozenset[str]] = frozenset({"previous", "seen", "written"})
    previous: Tensor
    seen: Tensor
    written: Tensor

    def __init__(self, alpha: float = 0.8) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ConfigurationError(f"PSKD: alpha must be between 0 and 1, not {alpha}")
        self.alpha = alpha
        self.num_classes = 0
        self.register_buffer("previous", torch.zeros(0, 0))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("written", torch.zeros(0, dtype=torch.bool))
        self.total_epochs = 1

    def bind(self, student: nn.Module, task: Task) -> None:
        """Takes the number of classes from the task."""
        if task.num_classes is None or task.monitor != "val/acc":
            raise ConfigurationError("PSKD needs a task with one class a sample, such as Classification")
        self.num_classes = task.num_classes

    def start(self, samples: int, epochs: int, device: Any) -> None:
        """Makes the table, unless a checkpoint brought it."""
        self.total_epochs = max(epochs, 1)
        if samples == 0:
            raise ConfigurationError("PSKD needs a map-style training set: its length sizes the table of answers")
        if len(self.previous) == 0:
            self.previous = torch.zeros(samples, self.num_classes, device=device)
            self.seen = torch.zeros(samples, dtype=torch.bool, device=device)
            self.written = torch.zeros(samples, dtype=torch.bool, device=device)
        elif len(self.previous) != samples:
            raise ConfigurationError(
                f"the checkpoint's PSKD table holds {len(self.previous)} samples and the training set {samples}: "
                "resume with the data that the run began with"
            )

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: the past is read by the term itself."""
        return ModelOutput()

    def loss(self, student: ModelOutput, teacher: ModelOutput, batch: Batch, progress: float, epoch: float) -> Tensor:
        """Cross-entropy with the mixed target; then the table remembers this answer."""
        if batch.index is None:
            raise ConfigurationError("PSKD needs sample numbers: wrap the data set with kdlightning.IndexedViews")
        if batch.target is None or batch.target.ndim != 1:
            raise ConfigurationError("PSKD needs one class number a sample; it has no form for soft (mixed) targets")
        share = self.alpha * min((int(epoch) + 1) / self.total_epochs, 1.0)
        alpha = share * self.seen[batch.index].float().unsqueeze(1)
        label = functional.one_hot(batch.target, self.num_classes).float()
        target = (1 - alpha) * label + alpha * self.previous[batch.index]
        with torch.no_grad():
            self.previous[batch.index] = student.logits.detach().float().softmax(dim=1)
            self.written[batch.index] = True
        return soft_cross_entropy(student.logits, target)

    def end_epoch(self) -> None:
        """Merges the ranks' tables; what was written in this epoch is the past of the next one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mine = self.written.float()
            rows = self.previous * mine.unsqueeze(1)
            torch.distributed.all_reduce(rows)
            torch.distributed.all_reduce(mine)
            # A sample that padding gave to two ranks has two equal rights to be remembered: their mean.
            self.previous = torch.where(mine.unsqueeze(1) > 0, rows / mine.clamp(min=1).unsqueeze(1), self.previous)
            self.written = mine > 0
        self.seen |= self.written
        self.written.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("previous", "seen", "written"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.previous.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
