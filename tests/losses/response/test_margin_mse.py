"""Margin-MSE: its formula, and what does not change it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import MarginMSE, margin_mse_loss


def loop(student: Tensor, teacher: Tensor) -> Tensor:
    squares = [
        ((own[0] - own[place]) - (other[0] - other[place])) ** 2
        for own, other in zip(student, teacher, strict=True)
        for place in range(1, len(own))
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (4, 5)])
def test_it_is_the_formula(random, assert_same, shape: tuple[int, int]) -> None:
    teacher = random(*shape)
    assert_same(lambda s: margin_mse_loss(s, teacher), lambda s: loop(s, teacher), random(*shape))
    assert_same(lambda s: MarginMSE()(s, teacher), lambda s: loop(s, teacher), random(*shape))


def test_gradient_is_the_numerical_one(random) -> None:
    teacher = random(3, 4)
    assert torch.autograd.gradcheck(lambda s: margin_mse_loss(s, teacher), random(3, 4).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
def test_what_is_added_to_a_query_s_scores_and_the_order_of_negatives_change_nothing(
    queries: int, group: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(queries, group, generator=draw, dtype=torch.float64) for _ in range(2))
    value = margin_mse_loss(student, teacher)
    moved = student + torch.randn(queries, 1, generator=draw)
    torch.testing.assert_close(margin_mse_loss(moved, teacher), value)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(group - 1, generator=draw)])
    torch.testing.assert_close(margin_mse_loss(student[:, order], teacher[:, order]), value)
    assert margin_mse_loss(teacher + 3, teacher) < 1e-20


def test_no_gradient_reaches_the_teacher_and_half_precision_is_widened() -> None:
    student, teacher = (torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    value = margin_mse_loss(student, teacher)
    assert value.dtype == torch.float32
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("shapes", [((2, 1), (2, 1)), ((4,), (4,)), ((2, 3), (2, 4))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="1 positive and its negatives"):
        margin_mse_loss(*(torch.zeros(shape) for shape in shapes))
