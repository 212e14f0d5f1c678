"""SRRL in a run: it reads the teacher's classifier, whatever the two networks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    SRRL,
    Classification,
    ConfigurationError,
    FeatureKD,
    LatestCheckpoint,
    OfflineDistillation,
    OnlineDistillation,
    timm_model,
)
from kdlightning.losses import srrl_loss


def test_the_term_is_the_formula_and_the_checkpoint_holds_the_connector_alone(
    net: Any, images: Any, trainer: Any, tmp_path: Path
) -> None:
    student, teacher = net(4), net(6, 1)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=None)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    latest = LatestCheckpoint(dirpath=tmp_path)
    runner = trainer(max_epochs=2, callbacks=[FeatureKD(SRRL(), {"stages.1": "stages.1"}), latest])
    runner.fit(module, images())
    term = module.adapters["srrl"]["teacher"]
    pictures = next(iter(images()))[0]
    with torch.no_grad():
        module.eval()
        connected = term.adapters[0](student.stages(pictures))
        own = teacher.fc(connected.mean((2, 3)))
        expected = srrl_loss(connected, teacher.stages(pictures), own, teacher(pictures))
        value = term([student.stages(pictures)], [teacher.stages(pictures)], batch=None, progress=0.0)
    torch.testing.assert_close(value, expected)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items() if name.startswith("adapters.")}
    assert {shape for shape in shapes.values() if len(shape) > 1} == {(12, 8, 1, 1)}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_tap_that_the_classifier_does_not_read_is_refused(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(
        ConfigurationError, match="srrl: the teacher's classifier reads 12 features and its tap gives 6"
    ):
        trainer(callbacks=[FeatureKD(SRRL(), {"stages.1": "stages.0"})]).fit(module, images())


def test_peers_teach_with_their_classifiers_as_they_are(net: Any, images: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(4), [net(6, 1)], task=Classification(5), weights={"task": 0.0, "dml": 0.0})
    heads = [network.fc.weight.detach().clone() for network in (module.student, module.peers[0])]
    trainer(max_steps=1, callbacks=[FeatureKD(SRRL(), {"stages.1": "stages.1"})]).fit(module, images())
    for network, before in zip((module.student, module.peers[0]), heads, strict=True):
        assert torch.equal(network.fc.weight, before)
    assert module.adapters["srrl"]["peer1"].adapters[0][0].weight.requires_grad


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("test_resnet", "test_vit", {"pre_logits": "pre_logits"}),
        ("test_resnet", "test_vit", {"intermediates.-1": "pre_logits"}),
        ("test_vit", "test_resnet", {"intermediates.-1": "intermediates.-1"}),
    ],
)
def test_it_connects_convolutions_and_transformers(
    student: str, teacher: str, pairs: dict[str, str], images: Any, trainer: Any
) -> None:
    options = {"test_vit": {"img_size": 32, "patch_size": 8}, "test_resnet": {}}
    networks = [timm_model(name, num_classes=5, in_chans=1, options=options[name]) for name in (student, teacher)]
    module = OfflineDistillation(*networks, task=Classification(5), response=None)
    runner = trainer(callbacks=[FeatureKD(SRRL(relu=teacher != "test_vit"), pairs)])
    runner.fit(module, images(size=32))
    assert float(runner.callback_metrics["train/loss_srrl"]) > 0
