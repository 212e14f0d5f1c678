from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import HardLabelKD, hard_label_loss


def hard_label_loop(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher.tolist(), strict=True):
        decision = max(range(len(other)), key=lambda c: other[c])
        total = total - torch.log(torch.exp(own[decision]) / sum(torch.exp(value) for value in own))
    return total / len(student)


@pytest.mark.parametrize("batch", [1, 6])
def test_it_is_the_formula(random, assert_same, batch: int) -> None:
    teacher = random(batch, 5)
    teacher[0, 1] = teacher[0, 3] = 100.0  # of equal largest logits the first counts
    assert_same(lambda z: hard_label_loss(z, teacher), lambda z: hard_label_loop(z, teacher), random(batch, 5))


def test_derivatives_are_right(random) -> None:
    teacher = random(4, 3)
    assert torch.autograd.gradcheck(lambda z: hard_label_loss(z, teacher), random(4, 3).requires_grad_())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 10**6))
def test_only_the_teachers_decision_counts(batch: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    value = hard_label_loss(student, teacher)
    assert value > 0
    torch.testing.assert_close(hard_label_loss(student, 3 * teacher - 7), value)
    order = torch.randperm(classes, generator=generator)
    torch.testing.assert_close(hard_label_loss(student[:, order], teacher[:, order]), value)
    assert hard_label_loss(1e3 * torch.nn.functional.one_hot(teacher.argmax(1), classes).double(), teacher) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 110.0, 1e4, 1e30])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float) -> None:
    student = torch.zeros(3, 4, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    value = hard_label_loss(student, teacher)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher = random(8, 9).to(dtype), random(8, 9).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hard_label_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), hard_label_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-6
    )


def test_the_module_carries_the_papers_weights_and_reads_no_labels(random) -> None:
    student, teacher = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()
    soft = SimpleNamespace(target=torch.full((4, 5), 0.2))
    value = HardLabelKD()(student, teacher, batch=soft, progress=0.5)
    assert torch.equal(value, hard_label_loss(student, teacher))
    value.backward()
    assert teacher.grad is None
    assert HardLabelKD.default_weights == {"task": 0.5, "hard_label_kd": 0.5}
    assert HardLabelKD().name == "hard_label_kd"


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((2, 3), (2, 4)), "one shape"),
        (((2, 3, 1), (2, 3, 1)), r"\(batch, classes\)"),
        (((2, 1), (2, 1)), "HardLabelKD needs at least two classes"),
    ],
)
def test_bad_input_is_one_sentence(shapes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        hard_label_loss(*(torch.zeros(shape) for shape in shapes))
    assert "\n" not in str(caught.value)
