"""The cosine embedding loss: its formula, its edges, its place among tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kdlightning.losses import CosineEmbedding, cosine_embedding_loss


def loop(student: Tensor, teacher: Tensor) -> Tensor:
    values = []
    for own, other in zip(student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), strict=True):
        product = sum(a * b for a, b in zip(own, other, strict=True))
        lengths = [sum(a * a for a in vector) ** 0.5 for vector in (own, other)]
        values.append(1 - product / (lengths[0] * lengths[1]))
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_it_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)
    assert_same(lambda x: cosine_embedding_loss(x, teacher), lambda x: loop(x, teacher), random(*shape))


def test_gradient_is_the_numerical_one(random) -> None:
    teacher = random(3, 4)
    assert torch.autograd.gradcheck(lambda x: cosine_embedding_loss(x, teacher), random(3, 4).requires_grad_())


def test_it_is_torch_s_loss_with_target_one(random) -> None:
    student, teacher = random(5, 6), random(5, 6)
    expected = functional.cosine_embedding_loss(student, teacher, torch.ones(5))
    torch.testing.assert_close(cosine_embedding_loss(student, teacher), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(1e-25, 1e25), st.integers(0, 10**6))
def test_scale_changes_nothing_and_parallel_vectors_give_zero(count: int, width: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(count, width, generator=draw, dtype=torch.float64) for _ in range(2))
    value = cosine_embedding_loss(student, teacher)
    assert -1e-9 <= value <= 2 + 1e-9
    torch.testing.assert_close(cosine_embedding_loss(student * scale, teacher / scale), value)
    assert abs(cosine_embedding_loss(teacher * scale, teacher)) < 1e-9
    torch.testing.assert_close(cosine_embedding_loss(-teacher, teacher), value.new_tensor(2.0))


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e38])
def test_zeros_and_extremes_are_finite(size: float) -> None:
    student = torch.full((2, 3), size, requires_grad=True)
    value = cosine_embedding_loss(student, torch.ones(2, 3))
    value.backward()
    assert abs(value.item() - (size < 1e-30)) < 1e-6
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if size < 1e-30:
        assert not student.grad.any()


def test_no_gradient_reaches_the_teacher_and_half_precision_is_widened() -> None:
    student, teacher = (torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    value = cosine_embedding_loss(student, teacher)
    assert value.dtype == torch.float32
    value.backward()
    assert teacher.grad is None


def test_channels_are_the_vector(random) -> None:
    student, teacher = random(2, 3, 4), random(2, 3, 4)
    expected = cosine_embedding_loss(student.mT, teacher.mT)
    assert CosineEmbedding()(student, teacher) == expected
    adapter = CosineEmbedding().adapter((2, 3), (2, 5))
    assert adapter is not None
    assert adapter(torch.zeros(2, 3)).shape == (2, 5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors of one shape: \(2, 3\) and \(2, 4\)"):
        cosine_embedding_loss(torch.zeros(2, 3), torch.zeros(2, 4))
