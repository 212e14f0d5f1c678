"""A teacher that needs no student output runs before the student; one that reads it runs after."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from kdlightning import Classification, OfflineDistillation
from kdlightning.data.batch import Batch
from kdlightning.models.output import ModelOutput
from kdlightning.teachers import FrozenTeacher, MeanTeacher, Teacher


class Recorder(Teacher):
    """Notes what it is given."""

    reads_student: ClassVar[bool] = True

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        self.calls.append(student_output)
        return ModelOutput(torch.zeros(len(batch.inputs), 3))


class FirstRecorder(Recorder):
    reads_student: ClassVar[bool] = False


@pytest.mark.parametrize(("kind", "comes_first"), [(Recorder, False), (FirstRecorder, True)])
def test_order_of_teacher_and_student(kind: type[Recorder], comes_first: bool, trainer: Any) -> None:
    calls: list[Any] = []
    student = nn.Linear(4, 3)
    student.register_forward_hook(lambda *_: calls.append("student"))
    module = OfflineDistillation(student, teacher=kind(calls), task=Classification(3))
    loader = torch.utils.data.DataLoader([(torch.ones(4), 1)] * 4, batch_size=4)
    trainer().fit(module, loader)
    assert len(calls) == 2
    if comes_first:
        assert calls == [None, "student"]
    else:
        assert calls[0] == "student"
        assert isinstance(calls[1], ModelOutput)


def test_networks_of_their_own_come_first_by_default() -> None:
    assert not FrozenTeacher.reads_student
    assert not MeanTeacher.reads_student
    assert Teacher.reads_student
