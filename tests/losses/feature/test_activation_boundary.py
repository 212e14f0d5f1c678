from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning.losses import AB, ActivationBoundary, ab_loss


def loop(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """The paper's two cases, element by element."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        if t <= 0 and s > -margin:
            total = total + (s + margin) ** 2
        if t > 0 and s <= margin:
            total = total + (s - margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("margin", [1.0, 0.25, 3.0])
def test_it_is_the_formula(random, assert_same, shape: tuple[int, ...], margin: float) -> None:
    teacher = random(*shape)
    assert_same(lambda f: ab_loss(f, teacher, margin=margin), lambda f: loop(f, teacher, margin), random(*shape))


def test_a_teacher_of_exactly_zero_does_not_respond(random, assert_same) -> None:
    teacher = torch.zeros(2, 3, dtype=torch.float64)
    student = torch.tensor([[0.5, -0.5, -1.0], [-2.0, 1.0, 0.0]], dtype=torch.float64)
    assert_same(lambda f: ab_loss(f, teacher), lambda f: loop(f, teacher, 1.0), student)


def test_first_and_second_derivatives(random) -> None:
    teacher = random(2, 3, 4)
    student = random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ab_loss(f, teacher), (student,))
    assert torch.autograd.gradgradcheck(lambda f: ab_loss(f, teacher), (student,))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 10), st.floats(0.1, 100), st.integers(0, 10**6))
def test_only_the_teachers_signs_count(batch: int, channels: int, margin: float, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, batch, channels, 3, generator=generator, dtype=torch.float64)
    value = ab_loss(student, teacher, margin=margin)
    torch.testing.assert_close(ab_loss(student, scale * teacher, margin=margin), value)
    torch.testing.assert_close(ab_loss(scale * student, teacher, margin=scale * margin), scale**2 * value)
    torch.testing.assert_close(ab_loss(-student, -teacher, margin=margin), value)
    right = teacher.sign() * (margin + student.abs())
    assert ab_loss(right, teacher, margin=margin) == 0
    order = torch.randperm(3, generator=generator)
    torch.testing.assert_close(ab_loss(student[..., order], teacher[..., order], margin=margin), value)
    torch.testing.assert_close(ab_loss(torch.cat([student] * 2), torch.cat([teacher] * 2), margin=margin), value)


def test_the_teacher_is_only_read(random) -> None:
    student, teacher = random(2, 3).requires_grad_(), random(2, 3).requires_grad_()
    before = teacher.detach().clone()
    ab_loss(student, teacher).backward()
    assert teacher.grad is None
    assert torch.equal(teacher, before)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e15])
def test_values_of_any_size(random, scale: float) -> None:
    student = (random(2, 3, 4) * scale).float().requires_grad_()
    value = ab_loss(student, (random(2, 3, 4) * scale).float())
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4).bfloat16(), random(2, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ab_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), ab_loss(student.double(), teacher.double()), rtol=1e-5, atol=0)
    torch.testing.assert_close(ab_loss(student, teacher.double()), value)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((2, 3, 8, 8), (2, 5, 4, 4)), ((2, 3, 4, 4), (2, 5, 14, 14)), ((2, 3, 40), (2, 5, 10)), ((2, 3), (2, 5))],
)
def test_the_connector_is_a_regressor_that_may_be_negative(random, student_shape, teacher_shape) -> None:
    loss = ActivationBoundary()
    connector = loss.adapter(student_shape, teacher_shape)
    assert not any(isinstance(layer, nn.ReLU) for layer in connector)
    student, teacher = random(*student_shape).float(), random(*teacher_shape).float()
    loss(connector(student), teacher).backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
    connector.eval()
    assert loss(connector(student[:1]), teacher[:1]).isfinite()


def test_equal_shapes_need_no_connector(random) -> None:
    loss = AB(margin=2.0)
    assert AB is ActivationBoundary
    assert loss.adapter((2, 3, 4), (5, 3, 4)) is None
    student, teacher = random(2, 3, 4), random(2, 3, 4)
    assert torch.equal(loss(student, teacher), ab_loss(student, teacher, margin=2.0))
    assert (loss.spatial, loss.default_weights) == ("any", {"task": 1.0, "activation_boundary": 0.003})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ab_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "must have one shape"),
        (lambda: ab_loss(torch.zeros(2, 3), torch.zeros(2, 3), margin=0), "margin must be above 0"),
        (lambda: ActivationBoundary(margin=-1), "margin must be above 0"),
        (lambda: ActivationBoundary().adapter((2, 3), (2, 3, 4)), "two vectors or two maps"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
