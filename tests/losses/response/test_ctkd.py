from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import CTKD, kd_loss
from kdlightning.losses.response.ctkd import _SoftenedBy


def softmax_loop(row: Tensor, temperature: Tensor) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def standardized_loop(row: Tensor) -> Tensor:
    mean = sum(row) / len(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return torch.stack([(value - mean) / (1e-7 + deviation) for value in row])


def kd_loop(student: Tensor, teacher: Tensor, temperature: Tensor, standardize: bool = False) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        if standardize:
            own, other = standardized_loop(own), standardized_loop(other)
        for q, p in zip(softmax_loop(own, temperature), softmax_loop(other, temperature), strict=True):
            total = total + p * (torch.log(p) - torch.log(q))
    return total * temperature**2 / len(student)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("theta", [1.0, -2.5])
def test_value_and_gradients_are_the_formula(random, assert_same, standardize: bool, theta: float) -> None:
    teacher = random(5, 7)
    loss = CTKD(low=0.5, span=8.0, standardize=standardize).double()
    with torch.no_grad():
        loss.theta.fill_(theta)
    temperature = 0.5 + 8.0 / (1 + math.exp(-theta))
    assert_same(
        lambda z: loss(z, teacher, progress=0.5),
        lambda z: kd_loop(z, teacher, torch.tensor(temperature, dtype=torch.float64), standardize),
        random(5, 7),
    )


@pytest.mark.parametrize(
    ("progress", "reversal"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (1.0, 1.0), (0.025, (1 - math.cos(math.pi / 4)) / 2)],
)
def test_the_temperature_gets_the_reversed_gradient(random, progress: float, reversal: float) -> None:
    student, teacher = random(5, 7), random(5, 7)
    loss = CTKD(ramp=0.1).double()
    (ours,) = torch.autograd.grad(loss(student, teacher, progress=progress), loss.theta)
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(kd_loop(student, teacher, 1 + 20 * torch.sigmoid(theta)), theta)
    assert abs(plain) > 1e-3
    torch.testing.assert_close(ours, -reversal * plain, rtol=1e-9, atol=1e-12)


def test_the_schedule_passes_through_the_authors_epochs() -> None:
    for epoch in range(1, 241):
        step = min(epoch, 10)
        assert CTKD().reversal(epoch / 240) == pytest.approx(1 - (math.cos(step * math.pi / 10) + 1) / 2)
    assert CTKD(ramp=0).reversal(0.0) == 1.0


def test_gradients_can_be_differentiated_again(random) -> None:
    student, teacher = random(3, 4).requires_grad_(), random(3, 4)
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: _SoftenedBy.apply(z, teacher, t), (student, temperature))
    assert torch.autograd.gradgradcheck(lambda z, t: _SoftenedBy.apply(z, teacher, t), (student, temperature))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.booleans(), st.floats(-20, 20), st.integers(0, 10**6))
def test_it_is_kd_at_the_temperature_of_the_moment(batch, classes, standardize, theta, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    loss = CTKD(standardize=standardize).double()
    with torch.no_grad():
        loss.theta.fill_(theta)
    temperature = float(loss.temperature)
    assert 1 <= temperature <= 21
    expected = kd_loss(student, teacher, temperature=temperature, standardize=standardize)
    torch.testing.assert_close(loss(student, teacher, progress=0.3), expected, rtol=1e-6, atol=1e-12)
    value = loss(teacher, teacher, progress=1.0)
    assert abs(float(value.detach())) < 1e-10
    assert abs(float(torch.autograd.grad(value, loss.theta)[0])) < 1e-9


def test_training_it_makes_the_task_harder(random) -> None:
    """With the student held still, θ climbs the loss; the temperature stays between its bounds."""
    student, teacher = random(8, 5), random(8, 5, scale=6.0)
    loss = CTKD()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    values = []
    for _ in range(200):
        value = loss(student, teacher, progress=1.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] > values[0]
    assert 1 <= float(loss.temperature) <= 21
    assert float(loss.temperature) != pytest.approx(15.62, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [110.0, 1e4, 1e30])
@pytest.mark.parametrize("theta", [1.0, 1e4, -1e4])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float, theta: float) -> None:
    student = torch.zeros(3, 4, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for standardize in (False, gap < 1e6):
        loss = CTKD(standardize=standardize)
        with torch.no_grad():
            loss.theta.fill_(theta)
        value = loss(student, teacher, progress=1.0)
        assert value.isfinite()
        for gradient in torch.autograd.grad(value, [student, loss.theta]):
            assert gradient.isfinite().all()


def test_forbidden_classes_of_both_count_for_nothing(random) -> None:
    student, teacher = random(2, 4), random(2, 4)
    loss = CTKD().double()
    wide_student = torch.cat([student, torch.full((2, 1), -torch.inf)], 1).requires_grad_()
    wide_teacher = torch.cat([teacher, torch.full((2, 1), -torch.inf)], 1)
    value = loss(wide_student, wide_teacher, progress=1.0)
    torch.testing.assert_close(value, loss(student, teacher, progress=1.0))
    for gradient in torch.autograd.grad(value, [wide_student, loss.theta]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher = random(8, 9).to(dtype), random(8, 9).to(dtype)
    loss = CTKD().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, progress=1.0)
    value.backward()
    assert value.dtype == torch.float32
    assert loss.theta.grad is not None
    assert loss.theta.grad.dtype == dtype
    torch.testing.assert_close(
        value.double(), CTKD().double()(student.double(), teacher.double(), progress=1.0), rtol=1e-5, atol=1e-7
    )


def test_the_parameter_is_trained_and_saved() -> None:
    loss = CTKD()
    assert [name for name, _ in loss.named_parameters()] == ["theta"]
    assert list(loss.state_dict()) == ["theta"]
    assert float(loss.temperature) == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert CTKD.default_weights == {"task": 0.1, "ctkd": 0.9}
    assert (loss.name, loss.ramp) == ("ctkd", 10 / 240)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(3, 4).requires_grad_(), random(3, 4).requires_grad_()
    CTKD()(student, teacher, progress=1.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_one_sample_is_enough(random) -> None:
    student, teacher = random(1, 3), random(1, 3)
    loss = CTKD().double()
    torch.testing.assert_close(loss(student, teacher), kd_loop(student, teacher, loss.temperature))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CTKD()(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: CTKD()(torch.zeros(2, 1), torch.zeros(2, 1)), "CTKD needs at least two classes"),
        (lambda: CTKD(low=0), "low must be above 0"),
        (lambda: CTKD(span=-1), "span must be above 0"),
        (lambda: CTKD(ramp=1.5), "ramp must lie between 0 and 1"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
