from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import PKT, pkt_loss


def shares_loop(points: Tensor) -> list[list[Tensor]]:
    norms = [(row**2).sum() ** 0.5 + 1e-7 for row in points]
    size = range(len(points))
    cosines = [[(points[i] * points[j]).sum() / (norms[i] * norms[j]) for j in size] for i in size]
    similar = [[(value + 1) / 2 for value in row] for row in cosines]
    return [[value / sum(row) for value in row] for row in similar]


def pkt_loop(student: Tensor, teacher: Tensor) -> Tensor:
    own, other = shares_loop(student.flatten(1)), shares_loop(teacher.flatten(1))
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(own, other, strict=True):
        for q, p in zip(row, target, strict=True):
            total = total + p * torch.log((p + 1e-7) / (q + 1e-7))
    return total / len(student) ** 2


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 2), (3, 2, 2, 3)])
def test_pkt_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(shape[0], 7)
    assert_same(lambda f: pkt_loss(f, teacher), lambda f: pkt_loop(f, teacher), random(*shape))


def test_gradient_is_the_difference_quotient(random) -> None:
    teacher = random(4, 3)
    assert torch.autograd.gradcheck(lambda f: pkt_loss(f, teacher), random(4, 5).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.floats(0.5, 50), st.integers(0, 10**6))
def test_pkt_ignores_rotation_and_each_samples_length(batch: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, width, generator=generator, dtype=torch.float64) + 0.1
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    lengths = scale * (0.5 + torch.rand(batch, 1, generator=generator, dtype=torch.float64))
    assert abs(pkt_loss(lengths * (teacher @ rotation), teacher).item()) < 1e-6
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(pkt_loss(student[order], teacher[order]), pkt_loss(student, teacher))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_values_and_gradients_stay_finite(random, value: float) -> None:
    student = torch.full((4, 3), value, requires_grad=True)
    loss = pkt_loss(student, random(4, 6).float())
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(6, 5).bfloat16(), random(6, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pkt_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), pkt_loss(student.double(), teacher.double()), rtol=1e-4, atol=1e-9)


def test_one_sample_has_no_neighbours(random) -> None:
    assert pkt_loss(random(1, 3), random(1, 4)).item() == pytest.approx(0.0, abs=1e-12)


def test_bad_input_and_the_module(random) -> None:
    with pytest.raises(ValueError, match="of the same samples"):
        pkt_loss(random(3, 2), random(4, 2))
    student, teacher = random(4, 3), random(4, 5).requires_grad_()
    loss = PKT()
    value = loss(student.requires_grad_(), teacher)
    assert torch.equal(value, pkt_loss(student, teacher))
    value.backward()
    assert teacher.grad is None
    assert (loss.name, PKT.default_weights) == ("pkt", {"task": 1.0, "pkt": 30000.0})
    assert loss.compares_samples
    assert loss.adapter((4, 3), (4, 5)) is None
    assert math.isfinite(value.item())
