"""Mixed batches, whose targets are probabilities: who reads them, who does not care, who refuses them by name."""

from __future__ import annotations

from typing import Any

import pytest

from kdlightning import DIST, DKD, KD, NKD, WSLD, Classification, ConvNet, Digits, HardLabelKD, OfflineDistillation


def fit(trainer: Any, response: Any) -> dict[str, Any]:
    module = OfflineDistillation(ConvNet(10, widths=[4]), ConvNet(10), task=Classification(10), response=response)
    runner = trainer(limit_train_batches=2, limit_val_batches=0)
    runner.fit(module, datamodule=Digits(mixup=1.0, batch_size=16, train_limit=32))
    return runner.callback_metrics


@pytest.mark.parametrize("response", [KD(), DIST(), WSLD(), HardLabelKD()], ids=lambda loss: loss.name)
def test_these_train_on_mixed_batches(trainer: Any, response: Any) -> None:
    logged = fit(trainer, response)
    assert logged[f"train/loss_{response.name}"].isfinite()
    assert logged["train/loss_task"] > 0


@pytest.mark.parametrize("response", [NKD(), DKD()], ids=lambda loss: loss.name)
def test_these_refuse_them_by_name(trainer: Any, response: Any) -> None:
    name = type(response).__name__
    with pytest.raises(ValueError, match=rf"{name} needs hard labels \(batch,\), .* \(16, 10\): leave mixup out"):
        fit(trainer, response)
