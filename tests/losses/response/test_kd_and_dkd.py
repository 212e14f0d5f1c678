from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import DKD, KD, dkd_loss, kd_loss


def softmax_loop(row: Tensor, temperature: float) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def standardized_loop(row: Tensor) -> Tensor:
    mean = sum(row) / len(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return torch.stack([(value - mean) / (1e-7 + deviation) for value in row])


def kd_loop(student: Tensor, teacher: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        if standardize:
            own, other = standardized_loop(own), standardized_loop(other)
        for q, p in zip(softmax_loop(own, temperature), softmax_loop(other, temperature), strict=True):
            total = total + p * (torch.log(p) - torch.log(q))
    return total * temperature**2 / len(student)


def dkd_loop(student, teacher, target, alpha, beta, temperature, standardize=False):
    total = torch.zeros((), dtype=torch.float64)
    for own, other, label in zip(student, teacher, target.tolist(), strict=True):
        if standardize:
            own, other = standardized_loop(own), standardized_loop(other)
        q, p = softmax_loop(own, temperature), softmax_loop(other, temperature)
        rest_q, rest_p = sum(q) - q[label], sum(p) - p[label]
        binary = p[label] * torch.log(p[label] / q[label]) + rest_p * torch.log(rest_p / rest_q)
        others = torch.zeros((), dtype=torch.float64)
        for c in range(len(q)):
            if c != label:
                a, b = p[c] / rest_p, q[c] / rest_q
                others = others + a * torch.log(a / b)
        total = total + alpha * binary + beta * others
    return total * temperature**2 / len(student)


@pytest.mark.parametrize(("temperature", "standardize"), [(4.0, False), (1.0, False), (2.0, True)])
def test_kd_is_the_formula(random, assert_same, temperature: float, standardize: bool) -> None:
    teacher = random(5, 7)
    assert_same(
        lambda z: kd_loss(z, teacher, temperature=temperature, standardize=standardize),
        lambda z: kd_loop(z, teacher, temperature, standardize),
        random(5, 7),
    )


@pytest.mark.parametrize("options", [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (0.0, 1.0, 2.0), (1.0, 0.0, 3.0)])
def test_dkd_is_the_formula(random, assert_same, options: tuple[float, float, float]) -> None:
    alpha, beta, temperature = options
    teacher, target = random(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    assert_same(
        lambda z: dkd_loss(z, teacher, target, alpha=alpha, beta=beta, temperature=temperature),
        lambda z: dkd_loop(z, teacher, target, alpha, beta, temperature),
        random(6, 5),
    )


def test_dkd_standardized_is_the_formula(random, assert_same) -> None:
    teacher, target = random(4, 6), torch.tensor([0, 5, 2, 2])
    assert_same(
        lambda z: dkd_loss(z, teacher, target, temperature=2.0, standardize=True),
        lambda z: dkd_loop(z, teacher, target, 1.0, 8.0, 2.0, True),
        random(4, 6),
    )


def test_kd_is_dkd_with_the_teachers_weights(random) -> None:
    student, teacher, target = random(1, 6), random(1, 6), torch.tensor([2])
    rest = 1 - (teacher / 4).softmax(-1)[0, 2].item()
    torch.testing.assert_close(dkd_loss(student, teacher, target, beta=rest), kd_loss(student, teacher))


def test_dkd_of_two_classes_is_kd(random, assert_same) -> None:
    teacher, target = random(5, 2), torch.tensor([0, 1, 1, 0, 1])
    assert_same(lambda z: dkd_loss(z, teacher, target), lambda z: kd_loss(z, teacher), random(5, 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.sampled_from([0.5, 1.0, 4.0]), st.booleans(), st.integers(0, 10**6))
def test_kd_and_dkd_vanish_only_at_equality(batch, classes, temperature, standardize, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(classes, (batch,), generator=generator)
    student = teacher.clone().requires_grad_()
    options = {"temperature": temperature, "standardize": standardize}
    for function in (lambda z: kd_loss(z, teacher, **options), lambda z: dkd_loss(z, teacher, target, **options)):
        value = function(student)
        assert abs(value.item()) < 1e-12
        assert torch.autograd.grad(value, student)[0].abs().max() < 1e-11
        other = teacher.clone()
        other[:, 0] += 1.5
        assert function(other) > 0 or standardize
        shift = torch.randn(batch, 1, generator=generator, dtype=torch.float64) * 10
        torch.testing.assert_close(function(other + shift), function(other))
    order = torch.randperm(classes, generator=generator)
    place = torch.argsort(order)
    moved = dkd_loss(other[:, order], teacher[:, order], place[target], **options)
    torch.testing.assert_close(moved, dkd_loss(other, teacher, target, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [110.0, 1e4, 1e30])
@pytest.mark.parametrize("classes", [2, 4])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float, classes: int) -> None:
    student = torch.zeros(3, classes, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for target in (torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)):
        for temperature in (1.0, 4.0):
            for standardize in (False, True):
                options = {"temperature": temperature, "standardize": standardize}
                for value in (
                    kd_loss(student, teacher, **options),
                    dkd_loss(student, teacher, target, **options),
                ):
                    assert value.isfinite()
                    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_forbidden_classes_of_both_count_for_nothing(random) -> None:
    student, teacher = random(2, 4), random(2, 4)
    wide_student = torch.cat([student, torch.full((2, 1), -torch.inf)], 1).requires_grad_()
    wide_teacher = torch.cat([teacher, torch.full((2, 1), -torch.inf)], 1)
    value = kd_loss(wide_student, wide_teacher)
    torch.testing.assert_close(value, kd_loss(student, teacher))
    assert torch.autograd.grad(value, wide_student)[0].isfinite().all()


def test_constant_logits_can_be_standardized() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    value = kd_loss(student, torch.tensor([[1.0, 2.0, 3.0]] * 2), standardize=True)
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(3, 4).requires_grad_(), random(3, 4).requires_grad_()
    (kd_loss(student, teacher) + dkd_loss(student, teacher, torch.tensor([0, 1, 2]))).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher, target = random(8, 9).to(dtype), random(8, 9).to(dtype), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kd, dkd = kd_loss(student, teacher), dkd_loss(student, teacher, target)
    assert kd.dtype == dkd.dtype == torch.float32
    torch.testing.assert_close(kd.double(), kd_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-7)
    true = dkd_loss(student.double(), teacher.double(), target)
    torch.testing.assert_close(dkd.double(), true, rtol=1e-5, atol=1e-7)


def test_kd_does_not_read_targets_and_dkd_refuses_soft_ones(random) -> None:
    student, teacher = random(4, 5), random(4, 5)
    mixed = SimpleNamespace(target=torch.full((4, 5), 0.2))
    assert torch.equal(KD()(student, teacher, batch=mixed), kd_loss(student, teacher))
    with pytest.raises(ValueError, match=r"DKD needs hard labels .* \(4, 5\): leave mixup out"):
        DKD()(student, teacher, batch=mixed)


def test_modules_pass_their_options_and_carry_the_papers_weights(random) -> None:
    student, teacher, target = random(4, 5), random(4, 5), torch.tensor([0, 1, 2, 3])
    batch = SimpleNamespace(target=target)
    kd, dkd = KD(temperature=2.0, standardize=True), DKD(alpha=0.5, beta=2.0, temperature=3.0)
    assert torch.equal(
        kd(student, teacher, batch=batch, progress=0.5), kd_loss(student, teacher, temperature=2.0, standardize=True)
    )
    assert torch.equal(
        dkd(student, teacher, batch=batch, progress=0.5),
        dkd_loss(student, teacher, target, alpha=0.5, beta=2.0, temperature=3.0),
    )
    assert KD.default_weights == {"task": 0.1, "kd": 0.9}
    assert DKD.default_weights == {"task": 1.0, "dkd": 1.0}
    assert (KD().temperature, KD().name, DKD().beta, DKD().name) == (4.0, "kd", 8.0, "dkd")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: kd_loss(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)), r"\(batch, classes\)"),
        (lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0), "temperature must be above 0"),
        (lambda: kd_loss(torch.zeros(2, 1), torch.zeros(2, 1)), "KD needs at least two classes"),
        (lambda: KD(temperature=-1), "temperature must be above 0"),
        (lambda: dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)), "leave mixup out"),
        (lambda: dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0])), "1 labels for 2 samples"),
        (lambda: dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0])), "at least two classes"),
        (
            lambda: DKD()(torch.zeros(2, 3), torch.zeros(2, 3), batch=SimpleNamespace(target=None)),
            "this batch has none",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_sample_is_enough(random) -> None:
    student, teacher = random(1, 3), random(1, 3)
    expected = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(kd_loss(student, teacher), expected)
