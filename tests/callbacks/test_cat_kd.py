"""CAT-KD in a run: both networks' classifiers are read where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    CATKD,
    Classification,
    ConfigurationError,
    ConvNet,
    FeatureKD,
    FrozenTeacher,
    LatestCheckpoint,
    OfflineDistillation,
    timm_model,
)
from kdlightning.losses import cat_kd_loss

PAIRS = {"stages.1": "stages.1"}


def maps_of(network: ConvNet, pictures: torch.Tensor) -> torch.Tensor:
    return network.fc(network.stages(pictures).movedim(1, -1)).movedim(-1, 1)


def test_the_term_is_the_formula_and_nothing_is_saved_twice(
    net: Any, images: Any, trainer: Any, tmp_path: Path
) -> None:
    student, teacher = net(4), net(6, 1)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=None, weights={"task": 0.0})
    before, head = {n: v.clone() for n, v in teacher.state_dict().items()}, student.fc.weight.detach().clone()
    latest = LatestCheckpoint(dirpath=tmp_path)
    runner = trainer(max_epochs=2, callbacks=[FeatureKD(CATKD(), PAIRS, weight=3.0), latest])
    runner.fit(module, images())
    assert not torch.equal(student.fc.weight, head)  # it learns, though the labels weigh nothing
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    module.eval()
    pictures = next(iter(images()))[0]
    with torch.no_grad():
        value = module.adapters["catkd"]["teacher"](
            [student.stages(pictures)], [teacher.stages(pictures)], batch=None, progress=0.0
        )
        torch.testing.assert_close(value, cat_kd_loss(maps_of(student, pictures), maps_of(teacher, pictures)))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not any(name.startswith("adapters.") for name in saved["state_dict"])
    optimized = [p for group in runner.optimizers[0].param_groups for p in group["params"]]
    assert len(optimized) == len({id(p) for p in optimized}) == len(list(student.parameters()))


def test_a_label_map_of_the_teacher_is_followed(images: Any, trainer: Any, net: Any) -> None:
    teacher = ConvNet(9, widths=(6, 12))
    chosen = [8, 0, 2, 4, 6]
    frozen = FrozenTeacher(teacher, label_map=chosen)
    module = OfflineDistillation(net(4), frozen, task=Classification(5), response=None)
    trainer(max_steps=1, callbacks=[FeatureKD(CATKD(), PAIRS)]).fit(module, images())
    loss = module.adapters["catkd"]["teacher"]
    pictures = next(iter(images()))[0]
    module.eval()
    with torch.no_grad():
        student = module.student
        value = loss([student.stages(pictures)], [teacher.stages(pictures)], batch=None, progress=0.0)
        torch.testing.assert_close(
            value, cat_kd_loss(maps_of(student, pictures), maps_of(teacher, pictures)[:, chosen])
        )


def test_other_classes_are_refused(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), ConvNet(9, widths=(6, 12)), task=Classification(5), response=None)
    with pytest.raises(ConfigurationError, match="catkd: .*the student has 5, the teacher 9: give FrozenTeacher"):
        trainer(callbacks=[FeatureKD(CATKD(), PAIRS)]).fit(module, images())


@pytest.mark.parametrize(("student", "teacher"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")])
def test_it_transfers_between_convolutions_and_transformers(
    student: str, teacher: str, images: Any, trainer: Any
) -> None:
    options = {"test_vit": {"img_size": 32, "patch_size": 8, "global_pool": "avg"}, "test_resnet": {}}
    networks = [timm_model(name, num_classes=5, in_chans=1, options=options[name]) for name in (student, teacher)]
    module = OfflineDistillation(*networks, task=Classification(5), response=None)
    runner = trainer(callbacks=[FeatureKD(CATKD(), {"intermediates.-1": "intermediates.-1"})])
    runner.fit(module, images(size=32))
    assert float(runner.callback_metrics["train/loss_catkd"]) > 0
