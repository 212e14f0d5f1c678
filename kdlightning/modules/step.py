"""What one step is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
        student_views: the student's answers to each view of the samples, the first (`student`) included; empty unless
            the response reads several.
        teacher_views: the teacher's.
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

    def apart(self, views: int) -> DistillStep:
        """The step, if its answers are to all views of the batch together: each view's alone."""
        student = self.student.split(views)
        teacher = [] if self.teacher is None else self.teacher.split(views)
        first = teacher[0] if teacher else None
        return replace(self, student=student[0], teacher=first, student_views=student, teacher_views=teacher)

    def output(self, network: str) -> ModelOutput:
        """The answer of "student", "teacher" or "peer1", "peer2", …."""
        if network == "student":
            return self.student
        if network == "teacher":
            if self.teacher is None:
                raise ConfigurationError("this module has no teacher")
            return self.teacher
        return self.peers[int(network.removeprefix("peer")) - 1]
