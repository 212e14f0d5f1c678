"""Whoever supplies targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.losses.base import term_name
from kdlightning.models.output import ModelOutput
from kdlightning.taps import TapInfo, TapReader, canonical_shape, channels_first

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep
    from kdlightning.tasks import Task


class Teacher(nn.Module):
    """Base of all teachers: `teacher(batch, student_output) -> ModelOutput`.

    Attributes:
        provides: what its answers hold: "logits", "taps", "head".
        constant: True if its answer to a sample never changes during training.
        reads_student: False if it answers without the student's output. A training step then runs it first and hands
            it None: its activations are gone before the student's fill memory and cache, which stay warm for the
            backward pass.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    constant: ClassVar[bool] = False
    reads_student: ClassVar[bool] = True

    def check_task(self, task: Task) -> None:
        """Raises ConfigurationError for a task of whose answers it can make nothing; called when a module is made."""

    def prepare(self, taps: Iterable[str], *, language: bool, logits: bool) -> None:
        """Told once, at setup, what will be read of its answers.

        Args:
            taps: names of taps.
            language: hidden states and head are wanted rather than full logits.
            logits: whether any term reads logits (or hidden states) at all.
        """

    def probe(self, batch: Batch) -> dict[str, TapInfo]:
        """Shapes of the taps that `prepare` was told of, from two samples."""
        return {}

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """The answer to a batch. `logits=True` asks for logits even if `prepare` said that no term reads them."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, student_output)")

    def close(self) -> None:
        """Undoes `prepare`: removes hooks."""


class NetworkTeacher(Teacher):
    """A teacher that is a network; subclasses say which one."""

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "taps", "head"})

    def __init__(self) -> None:
        super().__init__()
        self._reader: TapReader | None = None

    @property
    def network(self) -> nn.Module:
        """The network that answers."""
        raise NotImplementedError(f"{type(self).__name__} must define network")

    def prepare(self, taps: Iterable[str], *, language: bool, logits: bool) -> None:
        """Installs the taps."""
        self.close()
        self._reader = TapReader(self.network, taps, language=language)

    @property
    def reader(self) -> TapReader:
        """Runs the network with the taps of `prepare`, or without any before it."""
        if self._reader is None:
            self._reader = TapReader(self.network)
        return self._reader

    def close(self) -> None:
        """Removes the taps."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def probe(self, batch: Batch) -> dict[str, TapInfo]:
        """Shapes of the taps."""
        return self.reader.probe(teacher_inputs(batch))


class SelfTeacher(Teacher):
    """A teacher made of the student itself; it brings its own terms, the first named after the class in snake case.

    Subclasses implement `loss`, or `terms` if they have several. Exits that they attach to the student are networks of
    their own, "exit1", "exit2", … from shallow to deep: they learn, are scored, and callbacks read their taps.

    Attributes:
        views: augmentations of each sample that a training step runs together.
        strong_views: whether the further ones are to be augmented more strongly.
        reads_partners: whether another sample of each one's class is read (`Batch.partners`).
    """

    default_weights: ClassVar[dict[str, float]] = {}
    views: ClassVar[int] = 1
    strong_views: ClassVar[bool] = False
    reads_partners: ClassVar[bool] = False
    taps_of_exits: ClassVar[tuple[str, ...]] = ()
    """Taps of each exit that the terms read."""
    reads_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Batch` that the term needs and a plain loader may lack; checked before training."""
    rank_local: ClassVar[frozenset[str]] = frozenset()
    """Buffers that each rank fills with its own samples: DDP would overwrite them with rank 0's in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self._infos: dict[str, TapInfo] = {}

    @property
    def name(self) -> str:
        """Name of the term."""
        return term_name(type(self))

    def bind(self, student: nn.Module, task: Task) -> None:
        """Called once when the module is made: copies of the student are built here."""

    def forget(self) -> None:
        """Called when a fit begins, before its checkpoint is read: samples of an earlier fit are not this one's."""

    @property
    def exit_taps(self) -> Sequence[str]:
        """Taps of the student at which exits are attached, shallow to deep, and others that the terms read."""
        return ()

    def build_exits(self, infos: Mapping[str, TapInfo]) -> None:
        """Told of `exit_taps` before training; subclasses build the exits here, unless they are there.

        Their container is a `Parts`, so that a checkpoint loads without them.
        """
        self._infos = dict(infos)

    def exit_shape(self, tap: str) -> tuple[int, ...]:
        """Shape of one of `exit_taps`, channels first, for two samples."""
        return canonical_shape(self._infos[tap])

    def feature(self, student: ModelOutput, tap: str) -> Tensor:
        """The student's tensor at one of `exit_taps`, channels first."""
        return channels_first(student.taps[tap], self._infos[tap])

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The exits by the tap that each begins at, shallow to deep; empty before `build_exits`."""
        return {}

    def shown(self, batch: Batch) -> list[Batch] | None:
        """What a training step runs together, the batch itself first; None for all `views` of it."""
        return None

    def terms(self, step: DistillStep, epoch: float, active: Callable[[str], bool]) -> dict[str, Tensor]:
        """The terms whose weight is not zero at the moment, raw; by default the one that `loss` computes."""
        if step.teacher is None or not active(self.name):
            return {}
        return {self.name: self.loss(step.student, step.teacher, step.batch, step.progress, epoch)}

    def loss(self, student: ModelOutput, teacher: ModelOutput, batch: Batch, progress: float, epoch: float) -> Tensor:
        """The term, without its weight."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(student, teacher, batch, progress, epoch)")

    def ensemble(self, outputs: Mapping[str, ModelOutput]) -> ModelOutput | None:
        """What student and exits say together, scored as `val/acc_ensemble`; None for nothing."""
        return None

    def remember(self, step: DistillStep) -> None:
        """Called at the end of each training step's forward pass, whatever the terms weigh."""

    def start(self, samples: int, epochs: int, device: Any) -> None:
        """Called when training starts, with the number of training samples (0 if unknown) and of epochs."""

    def after_optimizer_step(self, student: nn.Module, step: int) -> None:
        """Called after every optimizer step; `step` counts from 1."""

    def end_epoch(self) -> None:
        """Called at the end of every training epoch."""


def teacher_inputs(batch: Batch) -> Any:
    """The teacher's own inputs, or the student's."""
    return batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs


def as_teacher(teacher: Teacher | nn.Module | None) -> Teacher | None:
    """A bare network becomes a `FrozenTeacher`."""
    from kdlightning.teachers.frozen import FrozenTeacher

    return teacher if teacher is None or isinstance(teacher, Teacher) else FrozenTeacher(teacher)


__all__: Sequence[str] = ["NetworkTeacher", "SelfTeacher", "Teacher", "as_teacher", "teacher_inputs"]
