"""Losses with networks and random masks of their own, in runs that are broken off and resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from kdlightning import (
    KDSVD,
    MGD,
    VID,
    Classification,
    ConfigurationError,
    FeatureKD,
    FeatureLoss,
    OfflineDistillation,
    resumable,
)

STAGES = {"stages.0": "stages.0", "stages.1": "stages.1"}


@pytest.fixture
def train(net: Any, fit_until: Any) -> Any:
    """Trains for two epochs of three batches, or until step `stop`; resumes if there is a checkpoint."""

    def run(loss: FeatureLoss, name: str, stop: int | None = None) -> Any:
        student, teacher = net(4, dropout=0.3), net(6, 1)
        module = OfflineDistillation(
            student, teacher, task=Classification(5), response=None, optimizer=lambda p: torch.optim.AdamW(p, 1e-2)
        )
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 5)
        loader = resumable(data, batch_size=8, shuffle=True)
        return fit_until(name, lambda: module, loader, stop=stop, callbacks=[FeatureKD(loss, STAGES)], best=False)

    return run


@pytest.mark.parametrize("loss", [VID, MGD, KDSVD])
def test_a_resumed_run_ends_where_the_undisturbed_one_ends(loss: type[FeatureLoss], train: Any) -> None:
    whole = train(loss(), "whole")
    train(loss(), "cut", 4)
    resumed = train(loss(), "cut")
    assert resumed.global_step == whole.global_step == 6
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(("loss", "own"), [(VID, "log_scale"), (MGD, "generator.0.weight")])
def test_each_pair_has_networks_of_its_own_that_are_trained_and_saved(
    loss: type[FeatureLoss], own: str, net: Any, images: Any, trainer: Any
) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    runner = trainer(max_epochs=1, callbacks=[FeatureKD(loss(), STAGES)])
    runner.fit(module, images())
    name = next(iter(module.adapters))
    parts = module.adapters[name]["teacher"].losses  # type: ignore[index, union-attr]
    widths = [len(part.get_parameter(own)) for part in parts]
    assert widths == [6, 12]
    saved = {key for key in module.state_dict() if key.endswith(own)}
    assert len(saved) == 2
    trained = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert all(id(parameter) in trained for part in parts for parameter in part.parameters())
    metrics = {key: float(value) for key, value in runner.callback_metrics.items()}
    weights = {"task": 0.1, "kd": 0.9, **loss.default_weights}
    total = sum(weight * metrics[f"train/loss_{term}"] for term, weight in weights.items())
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-4)


def test_a_pairs_weight_is_refused_where_pairs_are_taken_together(net: Any, images: Any, trainer: Any) -> None:
    pairs = [{"student": tap, "teacher": tap, "weight": 1.0 + number} for number, tap in enumerate(STAGES)]
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="kdsvd compares its pairs together"):
        trainer(callbacks=[FeatureKD(KDSVD(), pairs)]).fit(module, images())


def test_a_single_stage_is_refused_by_the_losss_own_sentence(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="kdsvd: KDSVD relates consecutive stages: give it two or more pairs"):
        trainer(callbacks=[FeatureKD(KDSVD(), {"stages.0": "stages.0"})]).fit(module, images())
