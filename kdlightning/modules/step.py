"""What one step is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput


@dataclass
class DistillStep:
    """Everything that a term may read in one step.

    Attributes:
        batch: the batch.
        student: the student's answer.
        teacher: the teacher's answer; None without a teacher.
        peers: the answers of the other online networks.
        progress: optimizer steps done / total steps, 0 to 1.
        epoch: the same moment in epochs.
        stage: "train", "val", "test" or "predict".
        student_views: the student's answers to each part of what was run together, the first (`student`) included:
            views of the samples, or further samples; empty if the batch was run alone.
        teacher_views: the teacher's.
        exits: the answers of exits inside the student, shallow to deep.
        parts: the batches that were run together, `batch` first; empty if it was run alone.
    """

    batch: Batch
    student: ModelOutput
    teacher: ModelOutput | None = None
    peers: list[ModelOutput] = field(default_factory=list)
    progress: float = 0.0
    epoch: float = 0.0
    stage: str = "train"
    student_views: list[ModelOutput] = field(default_factory=list)
    teacher_views: list[ModelOutput] = field(default_factory=list)
    exits: list[ModelOutput] = field(default_factory=list)
    parts: list[Batch] = field(default_factory=list)

    @classmethod
    def of(
        cls, batch: Batch, answers: Mapping[str, ModelOutput], teacher: ModelOutput | None, **rest: Any
    ) -> DistillStep:
        """The step of the answers of all networks that learn, by their names."""
        peers, exits = ([a for name, a in answers.items() if name.startswith(kind)] for kind in ("peer", "exit"))
        return cls(batch, answers["student"], teacher, peers, exits=exits, **rest)

    def apart(self, parts: Sequence[Batch]) -> DistillStep:
        """The step, if its answers are to several batches together: each one's alone."""
        sizes = [part.size for part in parts]
        student = self.student.split(sizes)
        teacher = [] if self.teacher is None else self.teacher.split(sizes)
        return replace(
            self,
            batch=parts[0],
            student=student[0],
            teacher=teacher[0] if teacher else None,
            peers=[peer.split(sizes)[0] for peer in self.peers],
            exits=[output.split(sizes)[0] for output in self.exits],
            student_views=student,
            teacher_views=teacher,
            parts=list(parts),
        )

    def output(self, network: str) -> ModelOutput:
        """The answer of "student", "teacher", "peer1", "peer2", …, or "exit1", "exit2", …."""
        if network == "student":
            return self.student
        if network == "teacher":
            if self.teacher is None:
                raise ConfigurationError("this module has no teacher")
            return self.teacher
        kind, number = network[:4], int(network[4:]) - 1
        return (self.peers if kind == "peer" else self.exits)[number]
