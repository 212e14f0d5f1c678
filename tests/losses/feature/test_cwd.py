from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import CWD, cwd_loss


def shares(channel: Tensor, temperature: float) -> list[Tensor]:
    weights = [(value / temperature).exp() for value in channel.flatten()]
    return [weight / sum(weights) for weight in weights]


def cwd_loop(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = 0.0
    for own_sample, other_sample in zip(student, teacher, strict=True):
        for own, other in zip(own_sample, other_sample, strict=True):
            pairs = zip(shares(other, temperature), shares(own, temperature), strict=True)
            total = total + sum(p * (p.log() - q.log()) for p, q in pairs)
    return total * temperature**2 / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("sizes", [(3, 2), (5,)])
def test_it_is_the_formula(random, assert_same, temperature: float, sizes: tuple[int, ...]) -> None:
    teacher = random(2, 3, *sizes)
    assert_same(
        lambda f: cwd_loss(f, teacher, temperature=temperature),
        lambda f: cwd_loop(f, teacher, temperature),
        random(2, 3, *sizes),
    )


def test_gradient_is_the_numerical_one(random) -> None:
    teacher = random(2, 2, 3)
    assert torch.autograd.gradcheck(lambda f: cwd_loss(f, teacher, temperature=2), random(2, 2, 3).requires_grad_())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.floats(-50, 50), st.integers(0, 10**6))
def test_offsets_of_channels_do_not_matter(batch: int, channels: int, positions: int, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, channels, positions, generator=generator, dtype=torch.float64)
    offsets = offset * torch.randn(batch, channels, 1, generator=generator, dtype=torch.float64)
    assert cwd_loss(teacher + offsets, teacher).abs() < 1e-12
    value = cwd_loss(student, teacher)
    assert value > -1e-15
    torch.testing.assert_close(cwd_loss(student + offsets, teacher - offsets), value, rtol=1e-9, atol=1e-12)
    # T² keeps the size of the gradient: T times the features at temperature T is T² times the value.
    torch.testing.assert_close(cwd_loss(student * 3, teacher * 3, temperature=3.0), value * 9, rtol=1e-9, atol=1e-12)


def test_of_two_sizes_the_larger_is_pooled(random) -> None:
    student, teacher = random(2, 3, 8, 8), random(2, 3, 4, 4)
    torch.testing.assert_close(cwd_loss(student, teacher), cwd_loss(F.adaptive_avg_pool2d(student, 4), teacher))


def test_tokens_are_transposed_maps(random) -> None:
    student, teacher = random(2, 6, 4), random(2, 6, 4)
    value = cwd_loss(student, teacher, layout="channels_last")
    torch.testing.assert_close(value, cwd_loss(student.mT.reshape(2, 4, 2, 3), teacher.mT.reshape(2, 4, 2, 3)))
    assert not torch.isclose(value, cwd_loss(student, teacher))


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_extreme_features_are_finite(scale: float) -> None:
    student = (torch.randn(2, 3, 4, 4) * scale).requires_grad_()
    value = cwd_loss(student, torch.randn(2, 3, 4, 4) * scale)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_a_far_student_has_the_right_value() -> None:
    student = torch.tensor([[[500.0, 0.0]]], requires_grad=True)
    value = cwd_loss(student, torch.tensor([[[0.0, 0.0]]]))
    torch.testing.assert_close(value, torch.tensor(250 - math.log(2)))
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], torch.tensor([[[0.5, -0.5]]]))


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4, 4).half(), random(2, 3, 4, 4).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cwd_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), cwd_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-6)


def test_the_module_passes_its_temperature_on(random) -> None:
    student, teacher = random(1, 3, 4, 4), random(1, 3, 4, 4).requires_grad_()
    value = CWD(temperature=4.0)(student, teacher, batch=None)
    assert torch.equal(value, cwd_loss(student, teacher, temperature=4.0))
    assert not value.requires_grad
    assert CWD().temperature == 1
    assert CWD().adapter((2, 3, 4, 4), (2, 5, 4, 4)).weight.shape == (5, 3, 1, 1)
    assert CWD.default_weights == {"cwd": 5.0}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: cwd_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "CWD needs two maps"),
        (lambda: cwd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)), "there are 3 and 5: .*adapter: linear"),
        (lambda: cwd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), temperature=0), "temperature must be above 0"),
        (lambda: CWD(temperature=-1), "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
