"""The student's own depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.feature.fit_net import fitnet_loss
from kdlightning.losses.numerics import widened
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.exits import Exit
from kdlightning.models.output import ModelOutput
from kdlightning.models.parts import Parts
from kdlightning.taps import TapInfo
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities
from kdlightning.teachers.base import SelfTeacher

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep

_POOLS = ("pool", "avgpool", "global_pool", "head.global_pool")


class BYOT(SelfTeacher):
    """Self-distillation through exits (Zhang et al., "Be Your Own Teacher", ICCV 2019).

    At each named tap an exit is attached (`kdlightning.models.exits.Exit`): bottleneck layers that bring the map to the
    size and width of the deepest one, average pooling, a linear layer. Exits learn from labels and from the deepest
    part, which learns from labels alone (`task`); all of them move the layers that they share. Terms, with K exits:

    * `exits`: Σ_k of the task's loss of exit k;
    * `byot`: Σ_k T² · KL(softmax(z/T) ‖ softmax(z_k/T)), batch mean, z the student's logits, constant;
    * `byot_hint`: Σ_k of the mean over all elements of (F_k − F)², F the deepest map, constant.

    Default weights: task 1, exits 0.7 (the paper's 1 − α), byot 0.3 (α), byot_hint 0.05; T = 3. The α is that of the
    authors' later code and of mmrazor, which has T² as here; the authors' code has none, which is byot 0.3/9. The paper
    writes λ times the squared distance of maps. The authors' later code has λ = 0.03, of the distance itself over the
    whole batch and behind a linear layer, and spares the shallowest exit; Self-KD-Lib has 0.05 of the mean, as here; a
    widespread reimplementation has β = 1e-6 of the sum over batch and channels of pooled maps, without entries where
    neither is positive, which of a batch of 128 and 512 channels is 128 · 512 · 1e-6 = 0.066 of the mean. The last ReLU
    of a bottleneck is left out where the deepest map has its channels last (tokens), since it is signed then.

    The exits are networks of the run, "exit1", "exit2", …: `val/acc_exit1`, …, `val/acc_ensemble` (the mean of all
    logits, as in the authors' code), `fit_net_exit1`, … of callbacks, which read their taps `features` and `pre_logits`
    beside those of the student. Checkpoints hold them, exports do not.

    Args:
        exits: taps of the student, shallow to deep: maps, tokens or vectors.
        deepest: tap of the map, or vector, that exits are brought to; by default what goes into the layer `pool`,
            `avgpool` or `global_pool`, else `pre_logits`.
        temperature: T of both softmaxes.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "exits": 0.7, "byot": 0.3, "byot_hint": 0.05}
    taps_of_exits: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, exits: Sequence[str], deepest: str | None = None, temperature: float = 3.0) -> None:
        super().__init__()
        if isinstance(exits, str) or not exits or len(set(exits)) < len(exits) or deepest in exits:
            raise ConfigurationError(
                f"BYOT: exits must name different taps, one or more, and not the deepest: {exits!r}"
            )
        if not temperature > 0:
            raise ConfigurationError(f"BYOT: temperature must be positive, not {temperature}")
        self.begins = tuple(exits)
        self.deepest = deepest
        self.temperature = temperature
        self.parts = Parts()
        self._task: Task | None = None

    def bind(self, student: nn.Module, task: Task) -> None:
        """Looks for the deepest map, unless it is named; refuses tasks without one class distribution a sample."""
        check_class_probabilities("BYOT", task)
        self._task = task
        if self.deepest is None:
            modules = dict(student.named_modules())
            self.deepest = next((f"{name}:input" for name in _POOLS if name in modules), "pre_logits")
        if self.deepest in self.begins:
            raise ConfigurationError(f"BYOT: {self.deepest!r} is the deepest tap, and no exit: leave it out of exits")

    @property
    def exit_taps(self) -> Sequence[str]:
        """Where the exits begin, and the deepest map."""
        return self.begins if self.deepest is None else (*self.begins, self.deepest)

    def build_exits(self, infos: Mapping[str, TapInfo]) -> None:
        """Builds the exits, once."""
        super().build_exits(infos)
        if len(self.parts) or self._task is None or self._task.num_classes is None or self.deepest is None:
            return
        signed = infos[self.deepest].layout == "channels_last"
        for number, tap in enumerate(self.begins, start=1):
            shapes = self.exit_shape(tap), self.exit_shape(self.deepest)
            self.parts[f"exit{number}"] = Exit(*shapes, self._task.num_classes, relu=not signed)

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The exits by the tap that each begins at."""
        return dict(zip(self.begins, self.parts.values(), strict=True)) if len(self.parts) else {}

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """Nothing: the student's own answer is the target."""
        return ModelOutput()

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The exits' own losses, their pull towards the student's answer and towards its deepest map."""
        found: dict[str, list[Tensor]] = {}
        if self._task is not None and active("exits"):
            found["exits"] = [self._task.loss(output, step.batch) for output in step.exits]
        if active("byot"):
            target = step.student.logits.detach()
            found["byot"] = [kd_loss(output.logits, target, temperature=self.temperature) for output in step.exits]
        if self.deepest is not None and active("byot_hint"):
            deepest = self.feature(step.student, self.deepest).detach()
            found["byot_hint"] = [fitnet_loss(output.taps["features"], deepest) for output in step.exits]
        return {name: sum(values[1:], values[0]) for name, values in found.items()}

    def ensemble(self, outputs: Mapping[str, ModelOutput]) -> ModelOutput | None:
        """The mean of the logits of student and exits."""
        logits = [widened(output.logits) for output in outputs.values()]
        return ModelOutput(sum(logits[1:], logits[0]) / len(logits))
