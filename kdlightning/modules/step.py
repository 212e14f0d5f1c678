"""What one step is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """

    batch: Batch
    student: ModelOutput
    teacher: ModelOutput | None = None
    peers: list[ModelOutput] = field(default_factory=list)
    progress: float = 0.0
    epoch: float = 0.0
    stage: str = "train"

    def output(self, network: str) -> ModelOutput:
        """The answer of "student", "teacher" or "peer1", "peer2", …."""
        if network == "student":
            return self.student
        if network == "teacher":
            if self.teacher is None:
                raise ConfigurationError("this module has no teacher")
            return self.teacher
        return self.peers[int(network.removeprefix("peer")) - 1]
