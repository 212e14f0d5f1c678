from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses import LossContext, SimKD, simkd_loss


def simkd_loop(student: Tensor, teacher: Tensor) -> Tensor:
    """Maps (B, C, L): the teacher's is pooled in windows of two."""
    squares = []
    for own, other in zip(student, teacher, strict=True):
        for a, b in zip(own, other, strict=True):
            for place in range(len(a)):
                squares.append((a[place] - (b[2 * place] + b[2 * place + 1]) / 2) ** 2)
    return sum(squares) / len(squares)


def test_simkd_is_the_formula(random, assert_same) -> None:
    teacher = random(2, 3, 8)
    assert_same(lambda f: simkd_loss(f, teacher), lambda f: simkd_loop(f, teacher), random(2, 3, 4))


def test_gradient_is_the_difference_quotient(random) -> None:
    teacher = random(2, 3, 4, 4)
    assert torch.autograd.gradcheck(lambda f: simkd_loss(f, teacher), random(2, 3, 2, 4).requires_grad_())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 10**6))
def test_simkd_is_zero_at_equality_and_quadratic(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, channels, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert simkd_loss(teacher, teacher) == 0
    torch.testing.assert_close(simkd_loss(scale * student, scale * teacher), scale**2 * simkd_loss(student, teacher))


def test_tokens_and_half_precision(random) -> None:
    student, teacher = random(2, 6, 3), random(2, 6, 3)
    torch.testing.assert_close(simkd_loss(student, teacher, layout="channels_last"), simkd_loss(student.mT, teacher.mT))
    student, teacher = student.bfloat16(), teacher.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = simkd_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), simkd_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("own", "other"), [((4, 4), (8, 8)), ((8, 8), (4, 4)), ((5, 4), (3, 8)), ((7,), (4,)), ((), ())]
)
def test_the_larger_map_is_pooled_and_the_teacher_gets_no_gradient(random, own: Any, other: Any) -> None:
    student, teacher = random(2, 3, *own).requires_grad_(), random(2, 3, *other).requires_grad_()
    value = simkd_loss(student, teacher)
    size = [min(pair) for pair in zip(own, other, strict=True)]
    pools: dict[int, Any] = {0: lambda f, _: f, 1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}
    ours, theirs = (pools[len(size)](maps, size) for maps in (student, teacher))
    torch.testing.assert_close(value, (ours - theirs).square().mean())
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.any()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_values_and_gradients_are_finite(scale: float) -> None:
    student = (torch.randn(1, 3, 8, 8) * scale).requires_grad_()
    value = simkd_loss(student, torch.randn(1, 3, 4, 4) * scale)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


class Answer(nn.Module):
    def __init__(self, width: int, classes: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes, bias=bias)


def test_the_teachers_classifier_becomes_the_students_and_rests() -> None:
    student, teacher = Answer(6), Answer(6).requires_grad_(False)
    SimKD().bind(LossContext(student, teacher))
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert torch.equal(student.fc.bias, teacher.fc.bias)
    assert student.fc.weight.data_ptr() != teacher.fc.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in student.fc.parameters())
    plain = Answer(6, bias=False).requires_grad_(False)
    SimKD().bind(LossContext(student, plain))
    assert torch.equal(student.fc.weight, plain.fc.weight)
    assert not student.fc.bias.any()
    mapped = Answer(6, classes=2)
    SimKD().bind(LossContext(mapped, teacher, label_map=(3, 1)))
    assert torch.equal(mapped.fc.weight, teacher.fc.weight[[3, 1]])


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (Answer(5), Answer(6).requires_grad_(False), "make the student a ProjectedStudent"),
        (Answer(6, bias=False), Answer(6).requires_grad_(False), "give it one"),
        (Answer(6), Answer(6), "still learns"),
    ],
)
def test_classifiers_that_do_not_fit_are_refused(student: nn.Module, teacher: nn.Module, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SimKD().bind(LossContext(student, teacher))


def test_bad_shapes_and_the_module(random) -> None:
    with pytest.raises(ValueError, match="project the student's"):
        simkd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="tap projector of a ProjectedStudent"):
        SimKD().build([(2, 3, 4)], [(2, 5, 4)])
    student, teacher = random(2, 3, 4), random(2, 3, 8)
    value = SimKD()(student, teacher, batch=SimpleNamespace(), progress=0.5)
    assert torch.equal(value, simkd_loss(student, teacher))
    assert (SimKD().name, SimKD.default_weights) == ("sim_kd", {"task": 0.0, "sim_kd": 1.0})
    assert SimKD.deployed
