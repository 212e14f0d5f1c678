"""Knowledge review in a run: any levels, networks of its own, between convolutional networks and transformers."""

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
    ReviewKD,
    timm_model,
)

PAIRS = {"stages.0": "stages.0.1", "stages.1": "stages.1.1", "pre_logits": "pre_logits"}


def test_its_networks_train_and_go_on_after_a_resume(net: Any, images: Any, trainer: Any, tmp_path: Path) -> None:
    def run(name: str, epochs: int, start: Path | None = None) -> OfflineDistillation:
        torch.manual_seed(0)
        module = OfflineDistillation(net(4), net(6, 1), task=Classification(5), response=None)
        latest = LatestCheckpoint(dirpath=tmp_path / name)
        runner = trainer(max_epochs=epochs, callbacks=[FeatureKD(ReviewKD(), PAIRS, weight=2.0), latest])
        runner.fit(module, images(), ckpt_path=start, weights_only=True)
        m = runner.callback_metrics
        assert float(m["train/loss"]) == pytest.approx(
            float(m["train/loss_task"]) + 2 * float(m["train/loss_review_kd"]), rel=1e-5
        )
        return module

    whole = run("whole", 2)
    run("half", 1)
    resumed = run("half", 2, tmp_path / "half" / "last.ckpt")
    networks = whole.adapters["review_kd"].state_dict()
    assert any("fusions" in name for name in networks)
    for name, value in resumed.adapters["review_kd"].state_dict().items():
        assert torch.equal(value, networks[name]), name


def test_pairs_have_no_weights_of_their_own(net: Any, images: Any, trainer: Any) -> None:
    pairs = [{"student": "stages.0", "teacher": "stages.0", "weight": 2.0}]
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="review_kd compares its pairs together"):
        trainer(callbacks=[FeatureKD(ReviewKD(), pairs)]).fit(module, images())


def test_pairs_from_deep_to_shallow_are_refused(net: Any, images: Any, trainer: Any) -> None:
    pairs = {"stages.1": "stages.1", "stages.0": "stages.0"}
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="review_kd: the pairs must run from shallow to deep"):
        trainer(callbacks=[FeatureKD(ReviewKD(), pairs)]).fit(module, images())


@pytest.mark.parametrize(("student", "teacher"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")])
def test_it_reviews_between_convolutions_and_transformers(
    student: str, teacher: str, images: Any, trainer: Any
) -> None:
    options = {"test_vit": {"img_size": 32, "patch_size": 8}, "test_resnet": {}}
    networks = [timm_model(name, num_classes=5, in_chans=1, options=options[name]) for name in (student, teacher)]
    module = OfflineDistillation(*networks, task=Classification(5), response=None)
    pairs = {"intermediates.1": "intermediates.1", "intermediates.2": "intermediates.2", "pre_logits": "pre_logits"}
    runner = trainer(callbacks=[FeatureKD(ReviewKD(), pairs)])
    runner.fit(module, images(size=32))
    assert float(runner.callback_metrics["train/loss_review_kd"]) > 0
