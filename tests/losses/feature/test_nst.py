from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import NST, nst_loss


def units(maps: Tensor) -> list[list[Tensor]]:
    """Each sample's channels as vectors of length one."""
    return [[channel.flatten() / (channel**2).sum().sqrt() for channel in sample] for sample in maps]


def mean_kernel(first: list[Tensor], second: list[Tensor]) -> Tensor:
    values = [sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a in first for b in second]
    return sum(values) / len(values)


def nst_loop(student: Tensor, teacher: Tensor) -> Tensor:
    values = [
        mean_kernel(theirs, theirs) + mean_kernel(ours, ours) - 2 * mean_kernel(ours, theirs)
        for ours, theirs in zip(units(student), units(teacher), strict=True)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("own", "other"),
    [((5, 2, 2), (3, 2, 2)), ((2, 3, 3), (3, 3, 3)), ((4, 3), (7, 3)), ((2, 6), (3, 6)), ((1, 2), (1, 2))],
)
def test_it_is_the_formula_in_both_forms(random, assert_same, own: tuple[int, ...], other: tuple[int, ...]) -> None:
    teacher = random(2, *other)
    assert_same(lambda f: nst_loss(f, teacher), lambda f: nst_loop(f, teacher), random(2, *own))


def test_gradient_is_the_numerical_one(random) -> None:
    for own in (5, 2):
        teacher = random(2, 3, 2, 2)
        assert torch.autograd.gradcheck(lambda f, t=teacher: nst_loss(f, t), random(2, own, 2, 2).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6), st.floats(0.1, 100), st.integers(0, 10**6))
def test_scale_sign_and_order_of_channels_do_not_matter(
    batch: int, channels: int, positions: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, channels, positions, generator=generator, dtype=torch.float64)
    same = -scale * teacher[:, torch.randperm(channels, generator=generator)]
    assert nst_loss(same, teacher).abs() < 1e-12
    student = torch.randn(batch, channels + 1, positions, generator=generator, dtype=torch.float64)
    value = nst_loss(student, teacher)
    assert value > -1e-12
    order = torch.randperm(positions, generator=generator)
    torch.testing.assert_close(nst_loss(student[..., order] * scale, teacher[..., order]), value, atol=1e-12, rtol=1e-9)
    # Doubling each channel leaves the set's distribution as it is.
    torch.testing.assert_close(nst_loss(student.repeat(1, 2, 1), teacher), value, atol=1e-12, rtol=1e-9)


def test_of_two_sizes_the_larger_is_pooled(random) -> None:
    student, teacher = random(2, 3, 8, 4), random(2, 5, 4, 8)
    expected = nst_loss(F.adaptive_avg_pool2d(student, (4, 4)), F.adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(nst_loss(student, teacher), expected)


def test_tokens_are_transposed_maps(random) -> None:
    student, teacher = random(2, 9, 4), random(2, 9, 6)
    expected = nst_loss(student.mT.reshape(2, 4, 3, 3), teacher.mT.reshape(2, 6, 3, 3))
    torch.testing.assert_close(nst_loss(student, teacher, layout="channels_last"), expected)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_extreme_and_dead_channels_have_finite_gradients(scale: float) -> None:
    for positions in (2, 8):
        student = (torch.randn(2, 4, positions) * scale).requires_grad_()
        value = nst_loss(student, torch.randn(2, 4, positions) * scale)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    for positions in (2, 16):
        student, teacher = random(2, 3, positions).bfloat16(), random(2, 5, positions).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = nst_loss(student, teacher)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), nst_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-6)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4).requires_grad_()
    nst_loss(student, teacher).backward()
    assert teacher.grad is None


def test_the_module_is_the_function_without_adapter(random) -> None:
    student, teacher = random(1, 3, 4, 4), random(1, 5, 8, 8)
    assert NST().adapter((1, 3, 4, 4), (1, 5, 8, 8)) is None
    assert torch.equal(NST()(student, teacher, batch=None), nst_loss(student, teacher))
    assert NST.default_weights == {"nst": 50.0}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nst_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "NST needs two maps"),
        (lambda: nst_loss(torch.zeros(2, 3, 4), torch.zeros(3, 3, 4)), "of the same samples"),
        (
            lambda: nst_loss(torch.zeros(2, 9, 3), torch.zeros(2, 16, 3), layout="channels_last"),
            "9 and 16 tokens have no common grid",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
