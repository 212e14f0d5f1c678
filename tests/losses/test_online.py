from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import codistillation_loss, kd_loss, mean_squared_probability_loss, soft_cross_entropy


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


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_codistillation_is_the_formula(temperature: float, random, assert_same) -> None:
    others = [random(4, 5) for _ in range(3)]

    def loop(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for number, own in enumerate(student):
            own_total = (own / temperature).exp().sum()
            for label, value in enumerate(own):
                shares = [(z[number] / temperature).exp() for z in others]
                mean = sum(share[label] / share.sum() for share in shares) / len(others)
                total = total + mean * (mean.log() - ((value / temperature).exp() / own_total).log())
        return temperature**2 * total / len(student)

    assert_same(lambda z: codistillation_loss(z, others, temperature=temperature), loop, random(4, 5))
    student = random(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: codistillation_loss(z, others, temperature=temperature), student)
    learning = [other.clone().requires_grad_() for other in others]
    assert not codistillation_loss(student.detach(), learning).requires_grad


def test_codistillation_with_one_other_is_kd_and_with_equals_zero(random) -> None:
    own, other = random(4, 5), random(4, 5)
    torch.testing.assert_close(codistillation_loss(own, [other]), kd_loss(own, other, temperature=1.0))
    torch.testing.assert_close(codistillation_loss(own, [own, own + 3]), torch.zeros((), dtype=own.dtype))
    huge = torch.tensor([[1e4, 0.0, -1e4]])
    assert codistillation_loss(huge, [huge.flip(1), huge]).isfinite()


def test_codistillation_refuses_what_does_not_fit(random) -> None:
    with pytest.raises(ValueError, match="others is empty"):
        codistillation_loss(random(4, 5), [])
    with pytest.raises(ValueError, match="one shape"):
        codistillation_loss(random(4, 5), [random(4, 5), random(4, 6)])
    with pytest.raises(ValueError, match="temperature"):
        codistillation_loss(random(4, 5), [random(4, 5)], temperature=0.0)


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
