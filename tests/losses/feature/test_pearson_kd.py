from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import PearsonKD, pearson_kd_loss


def standardised(features: Tensor) -> list[list[Tensor]]:
    """Each channel's values over batch and positions, without mean and deviation."""
    channels = []
    for channel in features.movedim(1, 0):
        values = list(channel.flatten())
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        channels.append([(value - mean) / (deviation + 1e-6) for value in values])
    return channels


def pearson_loop(student: Tensor, teacher: Tensor) -> Tensor:
    squares = [
        (a - b) ** 2
        for own, other in zip(standardised(student), standardised(teacher), strict=True)
        for a, b in zip(own, other, strict=True)
    ]
    return sum(squares) / len(squares) / 2


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 2, 3), (4, 3), (1, 2, 3, 2)])
def test_it_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape) * 3 + 1
    assert_same(lambda f: pearson_kd_loss(f, teacher), lambda f: pearson_loop(f, teacher), random(*shape))


def test_gradient_is_the_numerical_one(random) -> None:
    teacher = random(3, 2, 2)
    assert torch.autograd.gradcheck(lambda f: pearson_kd_loss(f, teacher), random(3, 2, 2).requires_grad_())


def test_it_is_one_minus_the_mean_correlation(random) -> None:
    student, teacher = random(40, 5, 6, 6), random(40, 5, 6, 6)
    student = student + teacher
    rows = [torch.stack([student[:, channel].flatten(), teacher[:, channel].flatten()]) for channel in range(5)]
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in rows]).mean()
    samples = student.numel() / 5
    expected = (1 - correlation) * (samples - 1) / samples
    torch.testing.assert_close(pearson_kd_loss(student, teacher), expected, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.floats(0.01, 100), st.integers(0, 10**6))
def test_scales_offsets_and_order_do_not_matter(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, channels, 5, generator=generator, dtype=torch.float64)
    offsets = torch.randn(channels, 1, generator=generator, dtype=torch.float64) * scale
    assert pearson_kd_loss(teacher * scale + offsets, teacher) < 1e-6
    value = pearson_kd_loss(student, teacher)
    torch.testing.assert_close(pearson_kd_loss(student * scale + offsets, teacher), value, rtol=1e-3, atol=1e-6)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(pearson_kd_loss(student[order], teacher[order]), value, rtol=1e-9, atol=1e-12)
    assert pearson_kd_loss(-teacher, teacher) == pytest.approx(2 * (5 * batch - 1) / (5 * batch), rel=1e-3)


def test_of_two_sizes_the_larger_is_pooled(random) -> None:
    student, teacher = random(2, 3, 4, 4), random(2, 3, 8, 8)
    expected = pearson_kd_loss(student, F.adaptive_avg_pool2d(teacher, 4))
    torch.testing.assert_close(pearson_kd_loss(student, teacher), expected)


def test_tokens_are_transposed_maps(random) -> None:
    student, teacher = random(2, 6, 4), random(2, 6, 4)
    value = pearson_kd_loss(student, teacher, layout="channels_last")
    torch.testing.assert_close(value, pearson_kd_loss(student.mT.reshape(2, 4, 2, 3), teacher.mT.reshape(2, 4, 2, 3)))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6, 1e15])
def test_extreme_and_constant_channels_are_finite(scale: float) -> None:
    student = torch.randn(2, 3, 4, 4) * scale
    student[:, 0] = scale
    teacher = torch.randn(2, 3, 4, 4)
    teacher[:, 1] = 7
    student.requires_grad_()
    value = pearson_kd_loss(student, teacher)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_a_channel_without_deviation_counts_as_zeros() -> None:
    teacher = torch.randn(2, 1, 4, dtype=torch.float64)
    expected = F.mse_loss(torch.zeros(8, dtype=torch.float64), torch.tensor(standardised(teacher)[0])) / 2
    torch.testing.assert_close(pearson_kd_loss(torch.full_like(teacher, 3.0), teacher), expected)


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4, 4).bfloat16(), random(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pearson_kd_loss(student, teacher)
    assert value.dtype == torch.float32
    expected = pearson_kd_loss(student.double(), teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_module_is_the_function_and_compares_samples(random) -> None:
    student, teacher = random(2, 3, 4, 4), random(2, 3, 4, 4).requires_grad_()
    value = PearsonKD()(student, teacher, batch=None)
    assert torch.equal(value, pearson_kd_loss(student, teacher))
    assert not value.requires_grad
    assert PearsonKD.compares_samples
    assert PearsonKD().adapter((2, 3, 4), (2, 5, 4)).weight.shape == (5, 3, 1)
    assert PearsonKD.default_weights == {"pearson_kd": 6.0}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pearson_kd_loss(torch.zeros(1, 3), torch.zeros(1, 3)), "a single vector has no deviation"),
        (lambda: pearson_kd_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "there are 3 and 4: .*adapter: linear"),
        (lambda: pearson_kd_loss(torch.zeros(2, 3), torch.zeros(3, 3)), "of the same samples"),
        (lambda: pearson_kd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "as many dimensions"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
