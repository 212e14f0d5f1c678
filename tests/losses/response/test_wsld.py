from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import WSLD, wsld_loss


def softmax_loop(row: Tensor, temperature: float) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def wsld_loop(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    soft = target if target.ndim == 2 else F.one_hot(target, student.shape[1])
    for own, other, shares in zip(student, teacher, soft.tolist(), strict=True):
        losses = [
            -sum(y * torch.log(p) for y, p in zip(shares, softmax_loop(row.detach(), 1.0), strict=True))
            for row in (own, other)
        ]
        weight = 1 - torch.exp(-losses[0] / (losses[1] + 1e-7))
        for q, p in zip(softmax_loop(own, temperature), softmax_loop(other, temperature), strict=True):
            total = total - weight * p * torch.log(q)
    return total * temperature**2 / len(student)


HARD = torch.tensor([0, 4, 2, 2, 1, 3])
MIXED = 0.7 * F.one_hot(HARD, 5) + 0.3 * F.one_hot(HARD.flip(0), 5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("target", [HARD, MIXED], ids=["hard", "soft"])
def test_it_is_the_formula(random, assert_same, temperature: float, target: Tensor) -> None:
    teacher = random(6, 5)
    assert_same(
        lambda z: wsld_loss(z, teacher, target, temperature=temperature),
        lambda z: wsld_loop(z, teacher, target, temperature),
        random(6, 5),
    )


def test_soft_targets_of_one_class_are_hard_ones(random) -> None:
    student, teacher = random(6, 5), random(6, 5)
    torch.testing.assert_close(
        wsld_loss(student, teacher, F.one_hot(HARD, 5).double()), wsld_loss(student, teacher, HARD)
    )


def test_what_the_student_knows_better_counts_less(random) -> None:
    teacher, label = random(1, 5), torch.tensor([1])
    known, unknown = teacher.clone(), teacher.clone()
    known[0, 1] += 40
    unknown[0, 1] -= 40
    weights = []
    for student in (known, teacher, unknown):
        full = -(teacher.div(2).softmax(1) * student.div(2).log_softmax(1)).sum() * 4
        weights.append(wsld_loss(student, teacher, label).item() / full.item())
    assert weights[0] < 1e-6
    assert weights[1] == pytest.approx(1 - torch.exp(torch.tensor(-1.0)).item(), rel=1e-5)
    assert weights[2] == pytest.approx(1, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 10**6))
def test_invariances(batch: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(classes, (batch,), generator=generator)
    value = wsld_loss(student, teacher, target, temperature=temperature)
    full = -(teacher.div(temperature).softmax(1) * student.div(temperature).log_softmax(1)).sum(1).mean()
    assert 0 < value < full * temperature**2
    shift = torch.randn(batch, 1, generator=generator, dtype=torch.float64) * 10
    torch.testing.assert_close(wsld_loss(student + shift, teacher - shift, target, temperature=temperature), value)
    order = torch.randperm(classes, generator=generator)
    moved = wsld_loss(student[:, order], teacher[:, order], order.argsort()[target], temperature=temperature)
    torch.testing.assert_close(moved, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 110.0, 1e4, 1e30])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float) -> None:
    student = torch.zeros(3, 4, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for target in (torch.zeros(3, dtype=torch.int64), torch.full((3, 4), 0.25)):
        for temperature in (1.0, 2.0):
            value = wsld_loss(student, teacher, target, temperature=temperature)
            assert value.isfinite()
            assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher, target = random(8, 9).to(dtype), random(8, 9).to(dtype), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = wsld_loss(student, teacher, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), wsld_loss(student.double(), teacher.double(), target), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("target", [HARD, MIXED], ids=["hard", "soft"])
def test_the_module_passes_its_options_and_carries_the_papers_weights(random, target: Tensor) -> None:
    student, teacher = random(6, 5).requires_grad_(), random(6, 5).requires_grad_()
    value = WSLD(temperature=4.0)(student, teacher, batch=SimpleNamespace(target=target), progress=0.5)
    assert torch.equal(value, wsld_loss(student, teacher, target, temperature=4.0))
    value.backward()
    assert teacher.grad is None
    assert WSLD.default_weights == {"task": 1.0, "wsld": 2.5}
    assert (WSLD().temperature, WSLD().name) == (2.0, "wsld")


ZEROS = torch.zeros(2, 3)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: wsld_loss(ZEROS, ZEROS, torch.zeros(2, 4)), r"soft targets \(2, 4\) for logits \(2, 3\)"),
        (lambda: wsld_loss(ZEROS, ZEROS, torch.zeros(2)), r"soft targets \(2,\) for logits \(2, 3\)"),
        (lambda: wsld_loss(ZEROS, ZEROS, torch.zeros(2, 3).long()), "WSLD needs hard labels"),
        (lambda: wsld_loss(ZEROS, ZEROS, LABELS[:1]), "WSLD got 1 labels for 2 samples"),
        (lambda: WSLD()(ZEROS, ZEROS, batch=SimpleNamespace(target=None)), "WSLD needs labels.* has none"),
        (lambda: wsld_loss(ZEROS, torch.zeros(2, 4), LABELS), "one shape"),
        (lambda: wsld_loss(ZEROS[:, :1], ZEROS[:, :1], LABELS * 0), "WSLD needs at least two classes"),
        (lambda: wsld_loss(ZEROS, ZEROS, LABELS, temperature=0.0), "temperature must be above 0"),
        (lambda: WSLD(temperature=-1.0), "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
