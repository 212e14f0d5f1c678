"""Teacher-free distillation against a loop written by hand, in double precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import Classification, ConfigurationError, Digits, MultiLabel, SelfDistillation, TeacherFree


def plain_loss(logits: Tensor, labels: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and the divergence from the virtual teacher, sample by sample."""
    accuracy, temperature, soften = options["accuracy"], options["temperature"], options["soften_student"]
    hard = soft = torch.zeros((), dtype=torch.float64)
    own = temperature if soften else 1.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        hard = hard - (row[label] - row.exp().sum().log()) / len(labels)
        q = [accuracy if c == label else (1 - accuracy) / (len(row) - 1) for c in range(len(row))]
        powers = [share ** (1 / temperature) for share in q]
        p = (row / own).exp() / (row / own).exp().sum()
        for power, probability in zip(powers, p, strict=True):
            share = power / sum(powers)
            soft = soft + own**2 * share * (math.log(share) - probability.log()) / len(labels)
    return hard, soft


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"accuracy": 0.99, "temperature": 20.0, "soften_student": True},
        {"accuracy": 0.7, "temperature": 5.0, "soften_student": False},
    ],
)
def test_a_fit_equals_a_loop_by_hand(
    options: dict[str, Any], accumulate: int, net: Any, noisy_loader: Any, sgd: Any, trainer: Any
) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student).double()
    module = SelfDistillation(student, TeacherFree(**options), task=Classification(5), optimizer=sgd)
    runner = trainer(max_epochs=2, precision="64-true", accumulate_grad_batches=accumulate)
    runner.fit(module, noisy_loader(), noisy_loader(shuffle=False))

    optimizer, loader = sgd(twin.parameters()), noisy_loader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        for number, batch in enumerate(batches):
            hard, soft = plain_loss(twin(batch.data[0].double()), batch.data[1], options)
            ((0.9 * hard + 0.1 * soft) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    ours, theirs = student.state_dict(), twin.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-8, atol=1e-11, msg=name)
    shown = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert shown["train/loss_task"] == pytest.approx(float(hard.detach()), rel=1e-6)
    assert shown["train/loss_teacher_free"] == pytest.approx(float(soft.detach()), rel=1e-6)


def test_a_plain_loader_will_do(net: Any, loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), TeacherFree(), task=Classification(5))
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, loader(), loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert not any(name.startswith("teacher.") for name in module.state_dict())


@pytest.mark.parametrize("options", [{"accuracy": 0.0}, {"accuracy": 1.0}, {"accuracy": 1.5}])
def test_an_impossible_accuracy_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="TeacherFree: accuracy must be above 0 and below 1"):
        TeacherFree(**options)


def test_bad_input_is_refused(net: Any, trainer: Any) -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="TeacherFree: temperature must be positive"):
            TeacherFree(temperature=temperature)
    with pytest.raises(ConfigurationError, match="TeacherFree: accuracy must be above 1/5, which is chance"):
        SelfDistillation(net(4, 0), TeacherFree(accuracy=0.2), task=Classification(5))
    with pytest.raises(ConfigurationError, match="TeacherFree needs a task with one class a sample"):
        SelfDistillation(nn.Linear(4, 3), TeacherFree(), task=MultiLabel(3))


def test_mixed_targets_are_refused(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False, mixup=0.5)
    module = SelfDistillation(ConvNet(10, widths=(4,)), TeacherFree(), task=Classification(10))
    with pytest.raises(ConfigurationError, match="it has no form for soft targets"):
        trainer().fit(module, datamodule=data)
