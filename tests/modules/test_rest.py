"""Terms whose weight is zero, for a while or for good."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import Classification, ConfigurationError, LinearSchedule, OfflineDistillation, ResponseLoss


class Learned(ResponseLoss):
    """A response with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float) -> Tensor:
        return (self.scale * student - teacher).square().mean()


class Infinite(OfflineDistillation):
    """A term that is not finite."""

    def distill_terms(self, step: Any) -> dict[str, Tensor]:
        return {"mine": step.student.logits.sum() * float("inf")}


def test_a_response_at_rest_still_touches_its_parameters(net: Any, loader: Any, trainer: Any, sgd: Any) -> None:
    response = Learned()
    weights = {"learned": LinearSchedule(1, 0, until=0.5)}
    module = OfflineDistillation(
        net(4, 0), net(6, 1), task=Classification(5), response=response, weights=weights, optimizer=sgd
    )
    trainer(max_epochs=2).fit(module, loader())
    assert response.scale.grad is not None
    assert float(response.scale.grad) == 0.0
    assert float(response.scale.detach()) != 1.0


def test_everything_may_rest_at_first(net: Any, loader: Any, trainer: Any, weights_of: Any, sgd: Any) -> None:
    module = OfflineDistillation(
        net(4, 0),
        net(6, 1),
        task=Classification(5),
        weights={"task": 0.0, "kd": LinearSchedule(0, 1, begin=0.5, until=1.0)},
        optimizer=sgd,
    )
    before = weights_of(module.student)
    runner = trainer(max_epochs=1, limit_train_batches=2)
    runner.fit(module, loader())
    after = weights_of(module.student)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert float(runner.callback_metrics["train/loss"]) == 0.0


def test_weights_that_are_zero_for_good_are_refused(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), weights={"task": 0, "kd": 0})
    with pytest.raises(ConfigurationError, match="every weight is zero"):
        trainer().fit(module, loader())


def test_a_term_of_weight_zero_cannot_spoil_the_loss(net: Any, loader: Any, trainer: Any) -> None:
    module = Infinite(net(4, 0), net(6, 1), task=Classification(5), weights={"mine": 0.0})
    runner = trainer()
    runner.fit(module, loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])
