"""The parts of USKD, written sample by sample and class by class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlightning.losses import smoothed_target_loss, zipf_labels, zipf_loss

LABELS = torch.tensor([0, 4, 2, 2])


def softmax(row: Tensor) -> list[Tensor]:
    return [value.exp() / row.exp().sum() for value in row]


def plain_labels(row: Tensor, weak: Tensor, label: int) -> list[float]:
    """Labels of one sample by Zipf's law."""
    p, w = softmax(row), softmax(weak)
    score = [float((a / (1 - p[label]) + b / (1 - w[label])).detach()) for a, b in zip(p, w, strict=True)]
    ranks = [1 + sum(other > own for other in score) for own in score]
    shares = [0.0 if c == label else 1 / rank for c, rank in enumerate(ranks)]
    return [share / sum(shares) for share in shares]


def test_target_part_is_the_formula(random, assert_same) -> None:
    def loop(student: Tensor) -> Tensor:
        p = [softmax(row)[label] for row, label in zip(student, LABELS.tolist(), strict=True)]
        p_known = [float(value.detach()) for value in p]
        mean = sum(value**2 for value in p_known) / len(p)
        return -sum((1 + own**2 - mean) * value.log() for own, value in zip(p_known, p, strict=True)) / len(p)

    assert_same(lambda z: smoothed_target_loss(z, LABELS), loop, random(4, 5))


def test_labels_are_those_of_zipf(random) -> None:
    student, weak = random(4, 5), random(4, 5)
    expected = [plain_labels(*rows) for rows in zip(student, weak, LABELS.tolist(), strict=True)]
    torch.testing.assert_close(zipf_labels(student, weak, LABELS), torch.tensor(expected, dtype=torch.float64))


def test_labels_of_an_obvious_order() -> None:
    student = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
    # The label is ranked first and left out: 1/2, 1/3 and 1/4 remain, and are made to sum to 1.
    expected = torch.tensor([[0.0, 1 / 4, 1 / 2, 1 / 3]]) / (13 / 12)
    torch.testing.assert_close(zipf_labels(student, student, torch.tensor([0])), expected)


def test_other_classes_part_is_the_formula(random, assert_same) -> None:
    weak = random(4, 5)

    def loop(student: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, other, label in zip(student, weak, LABELS.tolist(), strict=True):
            shares = plain_labels(row.detach(), other, label)
            rest = sum(value.exp() for c, value in enumerate(row) if c != label)
            for c, value in enumerate(row):
                if c != label:
                    total = total - shares[c] * (value.exp() / rest).log()
        return total / len(student)

    assert_same(lambda z: zipf_loss(z, weak, LABELS), loop, random(4, 5))


def test_gradients_are_those_of_finite_differences(random) -> None:
    student, weak = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()
    # The ranks are constant around a point, the bracket of the target part is so by definition.
    assert torch.autograd.gradcheck(lambda z: zipf_loss(z, weak, LABELS), student)
    assert torch.autograd.gradcheck(lambda z: smoothed_target_loss(z[:1], LABELS[:1]), student)
    zipf_loss(student, weak, LABELS).backward()
    assert weak.grad is None


def test_one_sample_is_cross_entropy(random) -> None:
    student = random(1, 5)
    expected = torch.nn.functional.cross_entropy(student, LABELS[:1])
    torch.testing.assert_close(smoothed_target_loss(student, LABELS[:1]), expected)


def test_two_classes_leave_nothing_to_rank(random) -> None:
    assert zipf_loss(random(3, 2), random(3, 2), torch.tensor([0, 1, 1])) == 0


@pytest.mark.parametrize("gap", [1e4, 1e30])
def test_huge_logits_stay_finite(gap: float) -> None:
    student = torch.tensor([[gap, 0.0, -gap], [0.0, gap, 1.0]], requires_grad=True)
    for target in (torch.tensor([0, 1]), torch.tensor([1, 2])):
        labels = zipf_labels(student, student, target)
        torch.testing.assert_close(labels.sum(1), torch.ones(2))
        for value in (smoothed_target_loss(student, target), zipf_loss(student, student, target)):
            assert value.isfinite()
            assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_widened(random) -> None:
    student, weak = (random(4, 5).bfloat16().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = smoothed_target_loss(student, LABELS) + zipf_loss(student, weak, LABELS)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad is not None


@pytest.mark.parametrize("function", [smoothed_target_loss, lambda z, y: zipf_loss(z, z, y)])
def test_bad_labels_are_one_sentence(function) -> None:
    with pytest.raises(ValueError, match="hard labels"):
        function(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="3 labels for 2 samples"):
        function(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least two classes"):
        function(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
