"""The divergences behind KD, DKD, NKD and WSLD, whose gradients are formed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdlightning.losses.response.softened import softened_cross_entropy, softened_kl

BOTH = pytest.mark.parametrize("function", [softened_kl, softened_cross_entropy])


def shares(row: Tensor, temperature: float) -> list[Tensor]:
    powers = [torch.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def loop(function: Callable[..., Tensor], student: Tensor, teacher: Tensor, temperature: float, weight) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    weights = [1.0] * len(student) if weight is None else weight.tolist()
    for own, other, w in zip(student, teacher, weights, strict=True):
        for q, p in zip(shares(own, temperature), shares(other, temperature), strict=True):
            entropy = p * torch.log(p) if function is softened_kl else 0.0
            total = total + w * (entropy - p * torch.log(q))
    return total * temperature**2 / len(student)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_they_are_the_formulas(random, assert_same, function, temperature: float, weighted: bool) -> None:
    teacher, weight = random(5, 4), random(5) if weighted else None
    assert_same(
        lambda z: function(z, teacher, temperature, weight),
        lambda z: loop(function, z, teacher, temperature, weight),
        random(5, 4),
    )


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_first_and_second_derivatives_are_right(random, function, weighted: bool) -> None:
    teacher, weight = random(3, 4), random(3) if weighted else None

    def of(student: Tensor) -> Tensor:
        return function(student, teacher, 2.0, weight) ** 2

    student = random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(of, student)
    assert torch.autograd.gradgradcheck(of, student)


@BOTH
def test_inputs_are_left_as_they_are(random, function) -> None:
    student, teacher, weight = random(3, 4).requires_grad_(), random(3, 4).requires_grad_(), random(3).requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, weight)]
    loss = function(student, teacher, 1.0, weight)
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    (loss * 3).backward()
    assert torch.equal(student.grad, first * 3)
    assert teacher.grad is None
    assert weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(before, (student, teacher, weight), strict=True))


@BOTH
def test_classes_that_both_forbid_count_for_nothing(random, function) -> None:
    student, teacher = random(2, 4), random(2, 4)
    forbidden = torch.full((2, 1), -torch.inf, dtype=torch.float64)
    wide = torch.cat([student, forbidden], 1).requires_grad_()
    loss = function(wide, torch.cat([teacher, forbidden], 1), 2.0)
    torch.testing.assert_close(loss, function(student, teacher, 2.0))
    gradient = torch.autograd.grad(loss, wide)[0]
    assert gradient[:, 4].tolist() == [0, 0]
    assert gradient.isfinite().all()


@BOTH
def test_a_number_that_is_none_is_not_hidden(random, function) -> None:
    student = random(2, 3)
    student[0, 1] = torch.nan
    assert function(student, random(2, 3), 2.0).isnan()
    assert function(random(2, 3), student, 2.0).isnan()


@BOTH
def test_the_students_precision_is_kept(random, function) -> None:
    student = random(3, 4).requires_grad_()
    loss = function(student, random(3, 4).float(), 2.0)
    assert loss.dtype == torch.autograd.grad(loss, student)[0].dtype == torch.float64
