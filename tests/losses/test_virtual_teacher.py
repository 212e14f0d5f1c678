from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import kd_loss, virtual_teacher_loss

LABELS = torch.tensor([0, 4, 2, 2])


def softened(target: int, classes: int, accuracy: float, temperature: float) -> list[float]:
    """The virtual teacher's probabilities, each to the power 1/T, and normalised."""
    shares = [accuracy if c == target else (1 - accuracy) / (classes - 1) for c in range(classes)]
    powers = [share ** (1 / temperature) for share in shares]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("soften", [True, False])
@pytest.mark.parametrize(("accuracy", "temperature"), [(0.99, 20.0), (0.6, 1.0), (0.9, 4.0)])
def test_virtual_teacher_is_the_formula(random, assert_same, soften: bool, accuracy: float, temperature: float) -> None:
    def loop(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        own = temperature if soften else 1.0
        for row, label in zip(student, LABELS.tolist(), strict=True):
            q = (row / own).exp() / (row / own).exp().sum()
            for share, probability in zip(softened(label, 5, accuracy, temperature), q, strict=True):
                total = total + own**2 * share * (math.log(share) - probability.log())
        return total / len(student)

    options = {"accuracy": accuracy, "temperature": temperature, "soften_student": soften}
    assert_same(lambda z: virtual_teacher_loss(z, LABELS, **options), loop, random(4, 5))


def test_gradient_is_that_of_finite_differences(random) -> None:
    student = random(4, 5).requires_grad_()
    for soften in (True, False):
        assert torch.autograd.gradcheck(
            lambda z, soften=soften: virtual_teacher_loss(z, LABELS, soften_student=soften), student
        )


def test_at_temperature_one_it_is_cross_entropy_with_label_smoothing_but_for_a_constant(random) -> None:
    student, accuracy = random(4, 5), 0.9
    smoothing = (1 - accuracy) * 5 / 4
    entropy = -(accuracy * math.log(accuracy) + 0.1 * math.log(0.1 / 4))
    expected = F.cross_entropy(student, LABELS, label_smoothing=smoothing) - entropy
    torch.testing.assert_close(virtual_teacher_loss(student, LABELS, accuracy=accuracy, temperature=1.0), expected)


def test_it_is_distillation_from_logits(random) -> None:
    student = random(4, 5)
    logits = math.log(0.99 * 4 / 0.01) * F.one_hot(LABELS, 5).double()
    torch.testing.assert_close(logits.softmax(1).gather(1, LABELS[:, None]), torch.full((4, 1), 0.99).double())
    expected = kd_loss(student, logits, temperature=20.0)
    torch.testing.assert_close(virtual_teacher_loss(student, LABELS), expected)


def test_the_authors_probabilities_as_logits_are_a_higher_temperature() -> None:
    """Softmax of q/20 with 100 classes, against q^(1/186): what the class's docstring says."""
    q = torch.full((100,), 0.01 / 99, dtype=torch.float64)
    q[3] = 0.99
    ours = torch.tensor(softened(3, 100, 0.99, 185.7), dtype=torch.float64)
    torch.testing.assert_close((q / 20).softmax(0), ours, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gap", [1e4, 1e30])
def test_huge_logits_stay_finite(gap: float) -> None:
    student = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    for soften in (True, False):
        value = virtual_teacher_loss(student, torch.tensor([2]), soften_student=soften)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_widened(random) -> None:
    student = random(4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = virtual_teacher_loss(student, LABELS)
    torch.testing.assert_close(value, virtual_teacher_loss(student.float(), LABELS))
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 0.2}, r"above 1/5, which is chance, and below 1, not 0\.2"),
        ({"accuracy": 1.0}, "below 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"target": torch.zeros(4, 5)}, "class numbers"),
        ({"target": torch.zeros(3).long()}, "class numbers"),
    ],
)
def test_bad_input_is_one_sentence(options, message: str) -> None:
    given = {"target": LABELS} | options
    with pytest.raises(ValueError, match=message):
        virtual_teacher_loss(torch.zeros(4, 5), **given)
