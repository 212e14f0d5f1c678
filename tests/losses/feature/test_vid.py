from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import VID, vid_loss


def vid_loop(mean: Tensor, teacher: Tensor, log_scale: Tensor, eps: float) -> Tensor:
    values = []
    for own_sample, other_sample in zip(mean, teacher, strict=True):
        for channel, (own, other) in enumerate(zip(own_sample, other_sample, strict=True)):
            variance = (1 + log_scale[channel].exp()).log() + eps
            for a, b in zip(own.flatten(), other.flatten(), strict=True):
                values.append(((a - b) ** 2 / variance + variance.log()) / 2)
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 3, 4), (3, 4)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_it_is_the_formula_in_mean_and_variance(random, assert_same, shape: tuple[int, ...], eps: float) -> None:
    teacher, mean, log_scale = random(*shape), random(*shape), random(shape[1])
    assert_same(
        lambda m: vid_loss(m, teacher, log_scale, eps=eps), lambda m: vid_loop(m, teacher, log_scale, eps), mean
    )
    assert_same(lambda a: vid_loss(mean, teacher, a, eps=eps), lambda a: vid_loop(mean, teacher, a, eps), log_scale)


def test_gradient_is_the_numerical_one(random) -> None:
    teacher = random(2, 2, 3)
    inputs = (random(2, 2, 3).requires_grad_(), random(2).requires_grad_())
    assert torch.autograd.gradcheck(lambda m, a: vid_loss(m, teacher, a), inputs)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 10), st.integers(0, 10**6))
def test_scaling_both_sides_adds_a_constant(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, teacher = torch.randn(2, batch, channels, 4, generator=generator, dtype=torch.float64)
    variance = 0.5 + torch.rand(channels, generator=generator, dtype=torch.float64)

    def loss(factor: float) -> Tensor:
        inverse = torch.log(torch.expm1(variance * factor**2 - 1e-5))
        return vid_loss(mean * factor, teacher * factor, inverse)

    torch.testing.assert_close(loss(scale), loss(1.0) + math.log(scale), rtol=1e-9, atol=1e-9)


def test_the_best_variance_is_the_mean_squared_error(random) -> None:
    mean, teacher = random(5, 1, 40), random(5, 1, 40)
    best = (mean - teacher).square().mean()
    values = [vid_loss(mean, teacher, torch.log(torch.expm1(best * factor)).reshape(1)) for factor in (0.9, 1, 1.1)]
    assert values[1] < min(values[0], values[2])


def test_tokens_have_their_channels_last(random) -> None:
    mean, teacher, log_scale = random(2, 5, 3), random(2, 5, 3), random(3)
    value = vid_loss(mean, teacher, log_scale, layout="channels_last")
    torch.testing.assert_close(value, vid_loss(mean.mT, teacher.mT, log_scale))


@pytest.mark.parametrize("log_scale", [-200.0, 0.0, 200.0])
def test_extreme_variances_are_finite(log_scale: float) -> None:
    mean = (torch.randn(2, 3, 4) * 1e4).requires_grad_()
    scales = torch.full((3,), log_scale, requires_grad=True)
    value = vid_loss(mean, torch.zeros(2, 3, 4), scales)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, (mean, scales)))


def test_half_precision_is_computed_in_float32(random) -> None:
    mean, teacher, log_scale = random(2, 3, 4).bfloat16(), random(2, 3, 4).bfloat16(), random(3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = vid_loss(mean, teacher, log_scale)
    assert value.dtype == torch.float32
    expected = vid_loss(mean.double(), teacher.double(), log_scale.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def built(own: tuple[int, ...], other: tuple[int, ...], **options: float) -> VID:
    loss = VID(**options)
    loss.build([own], [other])
    return loss


@pytest.mark.parametrize(
    ("own", "other"), [((2, 3, 8, 8), (2, 5, 4, 4)), ((2, 3, 6), (2, 5, 12)), ((2, 3), (2, 5)), ((1, 3, 2, 2),) * 2]
)
def test_the_module_pools_predicts_and_compares(random, own: tuple[int, ...], other: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    loss = built(own, other).double()
    student, teacher = random(*own), random(*other)
    pooled = student
    if len(own) > 2:
        pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d}[len(own)]
        size = [min(pair) for pair in zip(own[2:], other[2:], strict=True)]
        pooled, teacher_pooled = pool(student, size), pool(teacher, size)
    else:
        teacher_pooled = teacher
    hidden = pooled.movedim(1, -1)
    for layer, after in ((0, torch.relu), (2, torch.relu), (4, lambda x: x)):
        hidden = after(hidden @ loss.predictor[layer].weight.flatten(1).T)
    expected = vid_loss(hidden.movedim(-1, 1), teacher_pooled, loss.log_scale)
    torch.testing.assert_close(loss(student, teacher, batch=None), expected)
    assert loss.adapter(own, other) is None


@pytest.mark.parametrize("variance", [5.0, 0.01, 5000.0])
def test_variances_start_where_the_option_says(variance: float) -> None:
    loss = built((2, 3), (2, 4), init_variance=variance, eps=1e-3)
    start = F.softplus(loss.log_scale.double()) + 1e-3
    torch.testing.assert_close(start, torch.full((4,), variance, dtype=torch.float64), rtol=1e-4, atol=0)


def test_network_and_variances_are_trained_and_saved(random) -> None:
    torch.manual_seed(0)
    loss = built((8, 3, 4, 4), (8, 5, 4, 4))
    names = {"log_scale", *(f"predictor.{layer}.weight" for layer in (0, 2, 4))}
    assert set(loss.state_dict()) == names == {name for name, _ in loss.named_parameters()}
    student, teacher = random(8, 3, 4, 4).float(), random(8, 5, 4, 4).float()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    optimizer = torch.optim.Adam(loss.parameters(), 0.02)
    values = []
    for _ in range(20):
        value = loss(student, teacher, batch=None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.01
    assert all((loss.state_dict()[name] - value).abs().max() > 0 for name, value in before.items())
    other = built((8, 3, 4, 4), (8, 5, 4, 4))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(student, teacher), loss(student, teacher))
    assert VID.default_weights == {"vid": 1.0}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: vid_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3)), "must have one shape"),
        (
            lambda: vid_loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), torch.zeros(5)),
            r"log_scale must have shape \(3,",
        ),
        (lambda: VID(init_variance=1e-6), "init_variance must be above eps"),
        (lambda: VID(eps=0), "eps must be above 0"),
        (lambda: built((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)), "VID needs vectors or maps"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
