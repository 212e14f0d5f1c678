"""SimKD in a run: what ships answers through the teacher's classifier and needs no teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    Classification,
    ConfigurationError,
    ConvNet,
    FeatureKD,
    FrozenTeacher,
    LatestCheckpoint,
    OfflineDistillation,
    OnlineDistillation,
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


def test_a_resumed_run_ends_where_the_undisturbed_one_ends(net: Any, images: Any, trainer: Any, tmp_path: Path) -> None:
    teacher = net(6, 1)

    def run(name: str, epochs: int, start: Path | None = None) -> ProjectedStudent:
        torch.manual_seed(0)
        student = ProjectedStudent(net(4), num_classes=5, teacher_width=12)
        module = OfflineDistillation(student, teacher, task=Classification(5), response=None)
        latest = LatestCheckpoint(dirpath=tmp_path / name)
        runner = trainer(max_epochs=epochs, callbacks=[FeatureKD(SimKD(), {"projector": "stages.1"}), latest])
        runner.fit(module, images(), ckpt_path=start, weights_only=True)
        learned = [p for group in runner.optimizers[0].param_groups for p in group["params"]]
        assert not {id(p) for p in learned} & {id(p) for p in student.fc.parameters()}
        return student

    whole = run("whole", 2)
    run("half", 1)
    resumed = run("half", 2, tmp_path / "half" / "last.ckpt")
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert torch.equal(resumed.fc.weight, teacher.fc.weight)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, {}, {"sim_kd": 1.0}),
        ({"weight": 2.0}, {}, {"sim_kd": 2.0}),
        ({}, {"task": 0.5, "sim_kd": 3.0}, {"task": 0.5, "sim_kd": 3.0}),
        ({"name": "reused"}, {}, {"reused": 1.0}),
    ],
)
def test_labels_weigh_nothing_unless_they_are_given_a_weight(
    options: dict[str, Any], given: dict[str, Any], expected: dict[str, float], net: Any, images: Any, trainer: Any
) -> None:
    student = ProjectedStudent(net(4), num_classes=5, teacher_width=12)
    module = OfflineDistillation(student, net(6, 1), task=Classification(5), response=None, weights=given)
    runner = trainer(max_steps=1, callbacks=[FeatureKD(SimKD(), {"projector": "stages.1"}, **options)])
    runner.fit(module, images())
    m = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert {name.removeprefix("train/loss_") for name in m if name.startswith("train/loss_")} == set(expected)
    total = sum(weight * m[f"train/loss_{name}"] for name, weight in expected.items())
    assert m["train/loss"] == pytest.approx(total, rel=1e-5)


def test_a_response_keeps_its_own_weights(net: Any, images: Any, trainer: Any) -> None:
    student = ProjectedStudent(net(4), num_classes=5, teacher_width=12)
    module = OfflineDistillation(student, net(6, 1), task=Classification(5))
    runner = trainer(max_steps=1, callbacks=[FeatureKD(SimKD(), {"projector": "stages.1"})])
    runner.fit(module, images())
    m = {name: float(value) for name, value in runner.callback_metrics.items()}
    expected = 0.1 * m["train/loss_task"] + 0.9 * m["train/loss_kd"] + m["train/loss_sim_kd"]
    assert m["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_teachers_classes_follow_its_label_map(images: Any, trainer: Any) -> None:
    teacher = ConvNet(9, widths=(6, 12))
    student = ProjectedStudent(ConvNet(5), num_classes=5, teacher_width=12)
    frozen = FrozenTeacher(teacher, label_map=[8, 0, 2, 4, 6])
    module = OfflineDistillation(student, frozen, task=Classification(5), response=None)
    trainer(max_steps=1, callbacks=[FeatureKD(SimKD(), {"projector": "stages.1"})]).fit(module, images())
    assert torch.equal(student.fc.weight, teacher.fc.weight[[8, 0, 2, 4, 6]])
    assert torch.equal(student.fc.bias, teacher.fc.bias[[8, 0, 2, 4, 6]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"adapter": "linear"}, "an adapter would not ship with it: leave adapter out"),
        ({"pairs": {"network.stages.1": "stages.1"}}, "not as wide as the teacher's"),
    ],
)
def test_what_would_not_ship_is_refused(
    options: dict[str, Any], sentence: str, net: Any, images: Any, trainer: Any
) -> None:
    student = ProjectedStudent(net(4), num_classes=5, teacher_width=12)
    module = OfflineDistillation(student, net(6, 1), task=Classification(5), response=None)
    with pytest.raises(ConfigurationError, match=f"sim_kd.*{sentence}"):
        trainer(callbacks=[FeatureKD(SimKD(), **({"pairs": {"projector": "stages.1"}} | options))]).fit(
            module, images()
        )


def test_peers_have_no_classifier_to_reuse(net: Any, images: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(4), [net(4, 1)], task=Classification(5))
    with pytest.raises(ConfigurationError, match="sim_kd: the teacher's classifier still learns"):
        trainer(callbacks=[FeatureKD(SimKD(), {"stages.1": "stages.1"})]).fit(module, images())
