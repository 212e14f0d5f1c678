"""TinyBERT's prediction terms: soft cross-entropy of classes, squared difference of numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Classification, ConfigurationError, OfflineDistillation, Regression
from kdlightning.losses import KD, LogitMSE, SoftCrossEntropy, logit_mse_loss


def loop(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        powers = [math.exp(float(z) / temperature) for z in other]
        own_powers = [torch.exp(z / temperature) for z in own]
        for power, own_power in zip(powers, own_powers, strict=True):
            total = total - power / sum(powers) * torch.log(own_power / sum(own_powers))
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divide", [False, True])
def test_it_is_the_formula(random: Any, assert_same: Any, temperature: float, divide: bool) -> None:
    teacher = random(5, 4)
    loss = SoftCrossEntropy(temperature, divide_by_classes=divide)
    assert_same(
        lambda z: loss(z, teacher), lambda z: loop(z, teacher, temperature) / (4 if divide else 1), random(5, 4)
    )


def test_at_temperature_one_its_gradient_is_that_of_kd(random: Any) -> None:
    student, teacher = random(5, 4).requires_grad_(), random(5, 4)
    gradients = [torch.autograd.grad(loss(student, teacher), student)[0] for loss in (SoftCrossEntropy(), KD(1.0))]
    torch.testing.assert_close(*gradients)


def test_half_precision_is_widened_and_the_teacher_gets_no_gradient(random: Any) -> None:
    student, teacher = random(5, 4).bfloat16(), random(5, 4).bfloat16().requires_grad_()
    for loss in (SoftCrossEntropy(), LogitMSE()):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(student.requires_grad_(), teacher)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(student.float(), teacher.float()))
        value.backward()
    assert teacher.grad is None


def test_squared_differences_of_numbers(random: Any, assert_same: Any) -> None:
    teacher = random(6, 1)
    assert_same(
        lambda z: logit_mse_loss(z, teacher),
        lambda z: sum((a - b) ** 2 for a, b in zip(z.flatten(), teacher.flatten(), strict=True)) / 6,
        random(6, 1),
    )
    with pytest.raises(ValueError, match=r"must have one shape: \(6, 1\) and \(6,\)"):
        logit_mse_loss(teacher, teacher[:, 0])


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        SoftCrossEntropy(0.0)


@pytest.mark.parametrize("numbers", [True, False])
def test_a_run_learns_from_the_teacher_alone(numbers: bool, trainer: Any) -> None:
    outputs = 1 if numbers else 3
    student, teacher = torch.nn.Linear(4, outputs), torch.nn.Linear(4, outputs)
    x = torch.randn(16, 4)
    y = torch.randn(16, 1) if numbers else torch.arange(16) % 3
    module = OfflineDistillation(
        student,
        teacher=teacher,
        task=Regression() if numbers else Classification(3),
        response=LogitMSE() if numbers else SoftCrossEntropy(),
        optimizer=lambda p: torch.optim.SGD(p, 0.0),
    )
    runner = trainer(max_epochs=1)
    runner.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16))
    ours, theirs = student(x), teacher(x)
    wanted = (ours - theirs).square().mean() if numbers else loop(ours.double(), theirs.double(), 1.0).float()
    logged = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("train/")}
    name = "logit_mse" if numbers else "soft_cross_entropy"
    assert logged == pytest.approx({"train/loss": float(wanted.detach()), f"train/loss_{name}": float(wanted.detach())})


def test_soft_classes_are_refused_where_there_are_none() -> None:
    with pytest.raises(ConfigurationError, match="SoftCrossEntropy compares probabilities of classes"):
        OfflineDistillation(
            torch.nn.Linear(2, 1), teacher=torch.nn.Linear(2, 1), task=Regression(), response=SoftCrossEntropy()
        )
