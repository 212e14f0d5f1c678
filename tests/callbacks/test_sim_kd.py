"""SimKD in a run: what ships answers through the teacher's classifier and needs no teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    Classification,
    ConfigurationError,
    FeatureKD,
    LatestCheckpoint,
    OfflineDistillation,
    ProjectedStudent,
    SimKD,
    load_student,
    timm_model,
)


def test_the_student_ships_the_teachers_classifier(net: Any, images: Any, trainer: Any, tmp_path: Path) -> None:
    teacher = net(6, 1)
    student = ProjectedStudent(net(4), num_classes=5, teacher_width=12)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=None)
    latest = LatestCheckpoint(dirpath=tmp_path)
    first = student.projector[0].weight.detach().clone()
    runner = trainer(max_epochs=2, callbacks=[FeatureKD(SimKD(), {"projector": "stages.1"}), latest])
    runner.fit(module, images(), images())
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert not torch.equal(student.projector[0].weight, first)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(
        float(runner.callback_metrics["train/loss_sim_kd"])
    )
    again = load_student(tmp_path / "last.ckpt", student=ProjectedStudent(net(4), num_classes=5, teacher_width=12))
    pictures = next(iter(images()))[0]
    student.eval()
    torch.testing.assert_close(again.eval()(pictures), student(pictures))


def test_a_network_of_timm_is_projected(images: Any, trainer: Any) -> None:
    student = ProjectedStudent(timm_model("test_resnet", num_classes=5, in_chans=1), num_classes=5, teacher_width=512)
    teacher = timm_model("resnet10t", num_classes=5, in_chans=1)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=None)
    runner = trainer(callbacks=[FeatureKD(SimKD(), {"projector": "layer4"})])
    runner.fit(module, images(size=32))
    assert float(runner.callback_metrics["train/loss_sim_kd"]) > 0


def test_a_student_without_projector_hears_what_it_needs(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5), response=None)
    with pytest.raises(ConfigurationError, match="make the student a ProjectedStudent"):
        trainer(callbacks=[FeatureKD(SimKD(), {"stages.1": "stages.1"})]).fit(module, images())
