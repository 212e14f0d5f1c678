from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlightning import Batch, PatientKD
from kdlightning.losses import patient_kd_loss


def patient_loop(student: Tensor, teacher: Tensor) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ours, theirs in zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True):
        own, other = ours / (ours**2).sum() ** 0.5, theirs / (theirs**2).sum() ** 0.5
        for x, y in zip(own, other, strict=True):
            total, count = total + (x - y) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 5)])
def test_value_and_gradient_are_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)
    assert_same(lambda s: patient_kd_loss(s, teacher), lambda s: patient_loop(s, teacher), random(*shape))
    assert torch.autograd.gradcheck(lambda s: patient_kd_loss(s, teacher), random(*shape).requires_grad_())


def test_only_directions_matter_and_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(3, 2, 5).requires_grad_(), random(3, 2, 5).requires_grad_()
    value = patient_kd_loss(student, teacher)
    torch.testing.assert_close(patient_kd_loss(7 * student, teacher / 3), value)
    assert abs(patient_kd_loss(2 * teacher, teacher).item()) < 1e-15
    assert patient_kd_loss(-teacher, teacher).item() == pytest.approx(4 / 5)
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("value", [0.0, 1e-15, 1e15])
def test_values_and_gradients_stay_finite(random, value: float) -> None:
    student = torch.full((2, 3), value, requires_grad=True)
    loss = patient_kd_loss(student, random(2, 3).float())
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(4, 8).bfloat16(), random(4, 8).bfloat16()
    value = patient_kd_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), patient_kd_loss(student.double(), teacher.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("left", [False, True])
def test_the_module_reads_the_first_token_alone(random, left: bool) -> None:
    """Padding, before the text or behind it, changes neither value nor gradient."""
    states = [random(2, 4, 6) for _ in range(4)]
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1] if left else [1, 1, 1, 1, 0, 0]])
    firsts = [0, 2 if left else 0]
    student = [tensor.requires_grad_() for tensor in states[:2]]
    loss = PatientKD()
    loss.build([(2, 4, 6)] * 2, [(2, 4, 6)] * 2)
    value = loss(student, states[2:], batch=Batch({"attention_mask": mask}, size=2))
    own, other = (
        torch.stack([torch.stack([tensor[text, :, place] for text, place in enumerate(firsts)]) for tensor in half])
        for half in (states[:2], states[2:])
    )
    torch.testing.assert_close(value, patient_loop(own, other))
    for gradient in torch.autograd.grad(value, student):
        read = gradient.abs().sum(1) > 0
        assert read.nonzero().tolist() == [[0, firsts[0]], [1, firsts[1]]]


def test_widths_that_differ_are_mapped_and_maps_of_images_refused(random) -> None:
    loss = PatientKD()
    loss.build([(2, 4, 6), (2, 8, 6)], [(2, 8, 6), (2, 8, 6)])
    assert [tuple(p.shape) for p in loss.parameters()] == [(8, 4)]
    value = loss([random(2, 4, 6).float(), random(2, 8, 6).float()], [random(2, 8, 6).float()] * 2)
    assert value.isfinite()
    with pytest.raises(ValueError, match="it reads the first token"):
        PatientKD().build([(2, 4, 3, 3)], [(2, 4, 3, 3)])
    with pytest.raises(ValueError, match="must have one shape"):
        patient_kd_loss(random(2, 3), random(2, 4))
