from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning import losses

FUNCTIONS = {
    "forward_kl": {},
    "reverse_kl": {},
    "jensen_shannon": {"beta": 0.3},
    "skew_forward_kl": {"alpha": 0.1},
    "skew_reverse_kl": {"alpha": 0.1},
    "total_variation_distance": {},
}
EACH = pytest.mark.parametrize(("name", "options"), FUNCTIONS.items())


def kl_loop(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return sum(a * torch.log(a / b) for a, b in zip(first, second, strict=True))


def mix(first: list[Tensor], second: list[Tensor], share: float) -> list[Tensor]:
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


def row_loop(name: str, p: list[Tensor], q: list[Tensor], beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    """The divergence of the teacher's distribution p and the student's q, as the papers write it."""
    if name == "forward_kl":
        return kl_loop(p, q)
    if name == "reverse_kl":
        return kl_loop(q, p)
    if name == "jensen_shannon":
        m = mix(p, q, beta)
        return beta * kl_loop(p, m) + (1 - beta) * kl_loop(q, m)
    if name == "skew_forward_kl":
        return kl_loop(p, mix(p, q, alpha))
    if name == "skew_reverse_kl":
        return kl_loop(q, mix(q, p, alpha))
    return sum((a - b).abs() for a, b in zip(p, q, strict=True)) / 2


def loop(name: str, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, **options: float) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                powers = [[(v / temperature).exp() for v in row[b, t]] for row in (teacher, student)]
                p, q = ([power / sum(row) for power in row] for row in powers)
                total, count = total + row_loop(name, p, q, **options), count + 1
    return total / count


@EACH
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_and_gradients_are_the_formula(random, assert_same, name, options, temperature: float) -> None:
    teacher, mask = random(2, 3, 5), torch.tensor([[1, 0, 1], [1, 1, 0]])
    function = getattr(losses, name)
    assert_same(
        lambda z: function(z, teacher, mask, temperature=temperature, **options),
        lambda z: loop(name, z, teacher, mask, temperature, **options),
        random(2, 3, 5),
    )


@EACH
def test_uncounted_positions_have_no_influence(random, name, options) -> None:
    student, teacher = random(2, 4, 6), random(2, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    function = getattr(losses, name)
    value = function(student, teacher, mask, **options)
    broken_student, broken_teacher = student.clone(), teacher.clone()
    broken_student[mask == 0], broken_teacher[mask == 0] = torch.nan, torch.inf
    broken_student.requires_grad_()
    same = function(broken_student, broken_teacher, mask.bool(), **options)
    (gradient,) = torch.autograd.grad(same, broken_student)
    assert torch.equal(same, value)
    assert not gradient[mask == 0].any()
    assert gradient[mask == 1].all()
    kept = function(student[mask == 1], teacher[mask == 1], **options)
    torch.testing.assert_close(kept, value)
    torch.testing.assert_close(function(student, teacher, mask, reduction="sum", **options), 4 * value)


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_counted_is_zero_with_zero_gradient(random, name, options, reduction) -> None:
    student = random(2, 3, 4).requires_grad_()
    value = getattr(losses, name)(student, random(2, 3, 4), torch.zeros(2, 3), reduction=reduction, **options)
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(FUNCTIONS)), st.integers(1, 3), st.integers(2, 8), st.floats(0.3, 5), st.integers(0, 10**6)
)
def test_divergences_vanish_at_equality_and_ignore_order_and_shift(name, tokens, vocabulary, temperature, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    function = getattr(losses, name)
    options = {"temperature": temperature, **FUNCTIONS[name]}
    teacher = torch.randn(2, tokens, vocabulary, generator=generator, dtype=torch.float64) * 3
    same = teacher.clone().requires_grad_()
    value = function(same, teacher, **options)
    assert abs(value.item()) < 1e-12
    assert torch.autograd.grad(value, same)[0].abs().max() < 1e-11
    student = torch.randn(2, tokens, vocabulary, generator=generator, dtype=torch.float64) * 3
    value = function(student, teacher, **options)
    assert value > 0
    order = torch.randperm(vocabulary, generator=generator)
    torch.testing.assert_close(function(student[..., order], teacher[..., order], **options), value)
    torch.testing.assert_close(function(student + 5, teacher - 3, **options), value)
    if name == "total_variation_distance":
        assert value <= 1


def test_the_ends_are_the_kl_divergences_by_convention(random) -> None:
    student, teacher = random(2, 3, 5), random(2, 3, 5)
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    assert torch.equal(losses.jensen_shannon(student, teacher, beta=0), forward)
    assert torch.equal(losses.jensen_shannon(student, teacher, beta=1), reverse)
    assert torch.equal(losses.skew_forward_kl(student, teacher, alpha=0), forward)
    assert torch.equal(losses.skew_reverse_kl(student, teacher, alpha=0), reverse)
    half = losses.jensen_shannon(student, teacher)
    torch.testing.assert_close(half, losses.jensen_shannon(teacher, student))
    assert half < math.log(2)


@EACH
@pytest.mark.parametrize("gap", [1e4, 1e30, math.inf])
def test_huge_logits_stay_finite(name, options, gap: float) -> None:
    student = torch.tensor([[[gap if gap < math.inf else 0.0, 0.0, -gap], [0.0, 1.0, -gap]]], requires_grad=True)
    teacher = student.detach()[..., [1, 0, 2]]
    value = getattr(losses, name)(student, teacher, **options)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@EACH
def test_half_precision_is_computed_in_float32(random, name, options) -> None:
    student, teacher = random(2, 3, 9).bfloat16().requires_grad_(), random(2, 3, 9).bfloat16().requires_grad_()
    function = getattr(losses, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = function(student, teacher, **options)
    value.backward()
    assert value.dtype == torch.float32
    assert teacher.grad is None
    torch.testing.assert_close(
        value.double(), function(student.double(), teacher.double(), **options), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda z: losses.forward_kl(z, torch.zeros(2, 3, 5)), "must have one shape"),
        (lambda z: losses.forward_kl(z, z, torch.ones(2, 4)), r"the mask must be \(2, 3\)"),
        (lambda z: losses.forward_kl(z, z, temperature=0), "temperature must be above 0"),
        (lambda z: losses.reverse_kl(z, z, reduction="batchmean"), "reduction must be mean or sum"),
        (lambda z: losses.jensen_shannon(z, z, beta=1.5), "beta must lie between 0 and 1"),
        (lambda z: losses.skew_forward_kl(z, z, alpha=1), r"alpha must lie between 0 and 1 \(1 excluded\)"),
        (lambda z: losses.skew_reverse_kl(z, z, alpha=-0.1), "alpha must lie between 0 and 1"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call(torch.zeros(2, 3, 4))
    assert "\n" not in str(caught.value)
