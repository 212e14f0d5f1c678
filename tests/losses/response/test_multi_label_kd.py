from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import MultiLabelKD, kd_loss, multilabel_kd_loss


def multilabel_loop(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        for z, u in zip(own, other, strict=True):
            q, p = (1 / (1 + torch.exp(-value / temperature)) for value in (z, u))
            total = total + p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    return total * temperature**2 / len(student)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(5, 4), (5, 1), (1, 3)])
def test_it_is_the_formula(random, assert_same, temperature: float, shape: tuple[int, int]) -> None:
    teacher = random(*shape)
    assert_same(
        lambda z: multilabel_kd_loss(z, teacher, temperature=temperature),
        lambda z: multilabel_loop(z, teacher, temperature),
        random(*shape),
    )


def test_first_and_second_derivatives_are_right(random) -> None:
    teacher, student = random(3, 4), random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: multilabel_kd_loss(z, teacher, temperature=2.0) ** 2, student)
    assert torch.autograd.gradgradcheck(lambda z: multilabel_kd_loss(z, teacher, temperature=2.0) ** 2, student)


def test_one_label_is_the_distillation_of_two_classes(random, assert_same) -> None:
    teacher = random(5, 1)
    assert_same(
        lambda z: multilabel_kd_loss(z, teacher, temperature=2.0),
        lambda z: kd_loss(F.pad(z, (0, 1)), F.pad(teacher, (0, 1)), temperature=2.0),
        random(5, 1),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.5, 1.0, 4.0]), st.integers(0, 10**6))
def test_invariances(batch: int, labels: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, labels, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    options = {"temperature": temperature}
    value = multilabel_kd_loss(student, teacher, **options)
    assert value > 0
    same = teacher.clone().requires_grad_()
    equal = multilabel_kd_loss(same, teacher, **options)
    assert equal == 0
    assert torch.autograd.grad(equal, same)[0].abs().max() < 1e-15
    # Yes and no may be exchanged, labels reordered; labels add up.
    torch.testing.assert_close(multilabel_kd_loss(-student, -teacher, **options), value)
    order = torch.randperm(labels, generator=generator)
    torch.testing.assert_close(multilabel_kd_loss(student[:, order], teacher[:, order], **options), value)
    single = [multilabel_kd_loss(student[:, [n]], teacher[:, [n]], **options) for n in range(labels)]
    torch.testing.assert_close(sum(single), value)
    scaled = multilabel_kd_loss(student * temperature, teacher * temperature, **options)
    torch.testing.assert_close(scaled, multilabel_kd_loss(student, teacher) * temperature**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 20.0, 110.0, 1e4, 1e30, torch.inf])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float) -> None:
    sides = torch.tensor([gap, -gap, 0.0], dtype=dtype)
    student, teacher = torch.cartesian_prod(sides, sides).T[:, None]
    student = student.clone().requires_grad_()
    for temperature in (1.0, 4.0):
        value = multilabel_kd_loss(student, teacher, temperature=temperature)
        assert value.isfinite()
        gradient = torch.autograd.grad(value, student)[0]
        expected = ((student.detach() / temperature).sigmoid() - (teacher / temperature).sigmoid()) * temperature
        torch.testing.assert_close(gradient, expected)
        assert (value > 0) == (gap > 0)


def test_certain_teachers_are_told_apart(random) -> None:
    """Logarithms of probabilities would lose the difference between logits of 40 and 45."""
    student = torch.tensor([[-40.0, 40.0]], dtype=torch.float64)
    value = multilabel_kd_loss(student, torch.tensor([[-45.0, 45.0]], dtype=torch.float64))
    p, q = torch.exp(torch.tensor([-45.0, -40.0], dtype=torch.float64))
    torch.testing.assert_close(value, 2 * (q - p + p * torch.log(p / q)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher = random(8, 9).to(dtype).requires_grad_(), random(8, 9).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = multilabel_kd_loss(student, teacher)
    assert value.dtype == torch.float32
    true = multilabel_kd_loss(student.double(), teacher.double())
    torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(value, student)[0].dtype == dtype


def test_the_module_passes_its_options_and_reads_no_labels(random) -> None:
    student, teacher = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()
    before = student.detach().clone()
    value = MultiLabelKD(temperature=2.0)(student, teacher, batch=SimpleNamespace(target=None), progress=0.5)
    assert torch.equal(value, multilabel_kd_loss(student, teacher, temperature=2.0))
    value.backward()
    assert teacher.grad is None
    assert torch.equal(student.detach(), before)
    assert MultiLabelKD.compares == "labels"
    assert MultiLabelKD.default_weights == {"task": 1.0, "multi_label_kd": 1.0}
    assert (MultiLabelKD().temperature, MultiLabelKD().name) == (1.0, "multi_label_kd")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: multilabel_kd_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: multilabel_kd_loss(torch.zeros(2), torch.zeros(2)), r"\(batch, labels\)"),
        (lambda: multilabel_kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0), "temperature must be"),
        (lambda: MultiLabelKD(temperature=-1.0), "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
