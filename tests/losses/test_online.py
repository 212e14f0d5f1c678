from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import kd_loss, mean_squared_probability_loss, soft_cross_entropy


def test_mean_squared_probability_is_the_formula(random, assert_same) -> None:
    teacher = random(4, 5)

    def loop(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, other in zip(student, teacher, strict=True):
            own_total, other_total = own.exp().sum(), other.exp().sum()
            for a, b in zip(own, other, strict=True):
                total = total + (a.exp() / own_total - b.exp() / other_total) ** 2
        return total / student.numel()

    assert_same(lambda z: mean_squared_probability_loss(z, teacher), loop, random(4, 5))
    assert mean_squared_probability_loss(teacher, teacher) == 0


def test_soft_cross_entropy_is_the_formula(random, assert_same) -> None:
    targets = random(4, 5).softmax(-1)

    def loop(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, target in zip(student, targets, strict=True):
            for value, share in zip(own, target, strict=True):
                total = total - share * torch.log((value / 2).exp() / (own / 2).exp().sum())
        return total / len(student)

    assert_same(lambda z: soft_cross_entropy(z, targets, temperature=2.0), loop, random(4, 5))


def test_soft_cross_entropy_of_labels_is_cross_entropy(random) -> None:
    student, labels = random(4, 5), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(
        soft_cross_entropy(student, F.one_hot(labels, 5).double()), F.cross_entropy(student, labels)
    )


def test_the_mutual_term_is_kd_at_temperature_one(random) -> None:
    own, peer = random(4, 5), random(4, 5)
    expected = F.kl_div(own.log_softmax(-1), peer.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(kd_loss(own, peer, temperature=1.0), expected)


@pytest.mark.parametrize("gap", [1e4, 1e30])
def test_huge_logits_stay_finite(gap: float) -> None:
    student = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    for value in (
        mean_squared_probability_loss(student, student.detach().flip(1)),
        soft_cross_entropy(student, torch.tensor([[0.0, 0.0, 1.0]])),
    ):
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_targets_get_no_gradient_and_half_precision_is_widened(random) -> None:
    student, teacher = random(3, 4).bfloat16().requires_grad_(), random(3, 4).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mean_squared_probability_loss(student, teacher) + soft_cross_entropy(student, teacher.softmax(-1))
    value.backward()
    assert value.dtype == torch.float32
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("function", [mean_squared_probability_loss, soft_cross_entropy])
def test_bad_shapes_are_one_sentence(function) -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        function(torch.zeros(2, 3), torch.zeros(2, 4))
