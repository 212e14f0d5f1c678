from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import CC, cc_loss


def kernel_loop(points: Tensor, gamma: float, order: int) -> list[list[Tensor]]:
    units = [row / (row**2).sum() ** 0.5 for row in points]
    values = []
    for own in units:
        row = []
        for other in units:
            cosine = (own * other).sum()
            terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
            row.append(sum(terms))
        values.append(row)
    return values


def cc_loop(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    own, other = (kernel_loop(points.flatten(1), gamma, order) for points in (student, teacher))
    squares = [(a - b) ** 2 for row, target in zip(own, other, strict=True) for a, b in zip(row, target, strict=True)]
    return sum(squares) / len(student) ** 2


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.0, 1), (0.2, 5)])
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 2, 3)])
def test_cc_is_the_formula(random, assert_same, gamma: float, order: int, shape: tuple[int, ...]) -> None:
    teacher = random(shape[0], 7)
    assert_same(
        lambda f: cc_loss(f, teacher, gamma=gamma, order=order),
        lambda f: cc_loop(f, teacher, gamma, order),
        random(*shape),
    )


def test_a_long_series_is_the_gaussian_kernel(random) -> None:
    student, teacher = random(5, 3), random(5, 4)
    kernels = []
    for points in (student, teacher):
        units = points / points.norm(dim=1, keepdim=True)
        kernels.append(torch.exp(-0.4 * torch.cdist(units, units) ** 2))
    expected = (kernels[0] - kernels[1]).square().mean()
    torch.testing.assert_close(cc_loss(student, teacher, order=20), expected)


def test_gradient_is_the_difference_quotient(random) -> None:
    teacher = random(4, 3)
    assert torch.autograd.gradcheck(lambda f: cc_loss(f, teacher), random(4, 5).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 10**6))
def test_cc_ignores_rotation_and_each_samples_length(batch: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    assert cc_loss(scale * (teacher @ rotation), teacher).item() < 1e-24
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(cc_loss(student[order], teacher[order]), cc_loss(student, teacher))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_values_and_gradients_stay_finite(random, value: float) -> None:
    student = torch.full((4, 3), value, requires_grad=True)
    loss = cc_loss(student, random(4, 6).float())
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(6, 5).bfloat16(), random(6, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cc_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), cc_loss(student.double(), teacher.double()), rtol=1e-4, atol=1e-9)


def test_embeddings_of_both_networks_learn_and_are_saved(random) -> None:
    loss = CC(dimensions=3)
    loss.build([(2, 4)], [(2, 5, 2)])
    loss.double()
    loss(random(6, 4), random(6, 5, 2)).backward()
    assert {name.split(".")[0] for name in loss.state_dict()} == {"student_embedding", "teacher_embedding"}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_bad_input_and_the_module(random) -> None:
    student, teacher = random(4, 3), random(4, 5)
    with pytest.raises(ValueError, match="order must be at least 1"):
        cc_loss(student, teacher, order=0)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        CC(gamma=0)
    with pytest.raises(ValueError, match="dimensions must be at least 1"):
        CC(dimensions=0)
    value = CC(gamma=0.7, order=3)(student, teacher)
    assert torch.equal(value, cc_loss(student, teacher, gamma=0.7, order=3))
    assert (CC().name, CC.default_weights) == ("cc", {"task": 1.0, "cc": 100.0})
