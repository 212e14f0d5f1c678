"""Factor transfer in its two stages, each a run: the paraphraser's checkpoint is what the second one reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    Classification,
    ConfigurationError,
    FactorTransfer,
    FeatureKD,
    LatestCheckpoint,
    OfflineDistillation,
    Paraphraser,
)

PAIR = {"stages.1": "stages.1"}


class Watched(OfflineDistillation):
    """Keeps the loss of each step."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.__dict__.setdefault("values", []).append(float(self._last_terms["paraphraser"]))


@pytest.fixture
def first_stage(net: Any, images: Any, trainer: Any, tmp_path: Path) -> Any:
    """Trains a paraphraser of the teacher of seed 1, beside which the student stays as it is."""

    def run() -> Watched:
        module = Watched(net(4), net(6, 1), task=Classification(5), response=None, weights={"task": 0.0})
        kept = LatestCheckpoint(dirpath=tmp_path)
        trainer(max_epochs=4, callbacks=[FeatureKD(Paraphraser(), PAIR), kept]).fit(module, images(8))
        return module

    return run


def test_the_first_stage_trains_the_autoencoder_alone(net: Any, first_stage: Any) -> None:
    module = first_stage()
    before, after = dict(net(4).named_parameters()), dict(module.student.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert set(module._last_terms) == {"loss", "paraphraser"}
    assert module.values == sorted(module.values, reverse=True)


def test_the_second_stage_trains_student_and_translator_under_the_frozen_paraphraser(
    net: Any, images: Any, trainer: Any, first_stage: Any, tmp_path: Path
) -> None:
    trained = first_stage().adapters["paraphraser"]["teacher"].losses[0]
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5), response=None)
    callback = FeatureKD(FactorTransfer(str(tmp_path / "last.ckpt")), PAIR)
    runner = trainer(max_epochs=2, callbacks=[callback])
    runner.fit(module, images())
    loss = module.adapters["factor_transfer"]["teacher"].losses[0]  # type: ignore[index, union-attr]
    for ours, theirs in zip(loss.paraphraser.parameters(), trained.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    learned = {id(parameter) for group in runner.optimizers[0].param_groups for parameter in group["params"]}
    assert all(id(parameter) in learned for parameter in loss.translator.parameters())
    assert not any(id(parameter) in learned for parameter in loss.paraphraser.parameters())
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    total = metrics["train/loss_task"] + 500 * metrics["train/loss_factor_transfer"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "tap", "sentence"),
    [
        ({}, "stages.1", "factor_transfer: give paraphraser, the checkpoint of the method's first stage"),
        ({"paraphraser": "nowhere.ckpt"}, "stages.1", "factor_transfer: there is no paraphraser at nowhere.ckpt"),
        (
            {"paraphraser": "last.ckpt"},
            "stages.0",
            "maps of 12 channels .* gives maps of 6: train one on this very tap",
        ),
    ],
)
def test_what_is_missing_is_said_before_training(
    options: dict[str, str],
    tap: str,
    sentence: str,
    net: Any,
    images: Any,
    trainer: Any,
    first_stage: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first_stage()
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match=sentence):
        trainer(callbacks=[FeatureKD(FactorTransfer(**options), {tap: tap})]).fit(module, images())
