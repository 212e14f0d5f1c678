from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import mean_discrepancy_loss, mutual_kl_loss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_view_is_pulled_towards_the_other(random, assert_same, temperature: float) -> None:
    fixed = random(4, 5)

    def loop(moving: Tensor) -> Tensor:
        # The view that moves, as the one that learns and as the one that leads; the latter is a constant.
        total = torch.zeros((), dtype=torch.float64)
        for own, other in zip(moving, fixed, strict=True):
            for learns, leads in ((own, other), (other, own.detach())):
                p = (leads / temperature).exp() / (leads / temperature).exp().sum()
                q = (learns / temperature).exp() / (learns / temperature).exp().sum()
                for a, b in zip(p, q, strict=True):
                    total = total + temperature**2 / 2 * a * torch.log(a / b)
        return total / len(moving)

    assert_same(lambda z: mutual_kl_loss(z, fixed, temperature=temperature), loop, random(4, 5))
    assert_same(lambda z: mutual_kl_loss(fixed, z, temperature=temperature), loop, random(4, 5))


def test_mutual_kl_is_symmetric_and_zero_for_equal_views(random) -> None:
    first, second = random(4, 5), random(4, 5)
    torch.testing.assert_close(mutual_kl_loss(first, second), mutual_kl_loss(second, first))
    assert mutual_kl_loss(first, first) == 0
    expected = F.kl_div(first.log_softmax(1), second.softmax(1), reduction="batchmean")
    expected += F.kl_div(second.log_softmax(1), first.softmax(1), reduction="batchmean")
    torch.testing.assert_close(mutual_kl_loss(first, second), expected / 2)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 2, 2)])
def test_mean_discrepancy_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    fixed = random(*shape)

    def loop(moving: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for channel in range(shape[1]):
            means = []
            for view in (moving, fixed):
                values = [value for sample in view for value in sample[channel].reshape(-1)]
                means.append(sum(values[1:], values[0]) / len(values))
            total = total + (means[0] - means[1]) ** 2
        return total

    assert_same(lambda f: mean_discrepancy_loss(f, fixed), loop, random(*shape))
    assert_same(lambda f: mean_discrepancy_loss(fixed, f), loop, random(*shape))


def test_gradients_are_those_of_finite_differences(random) -> None:
    first, second = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(mean_discrepancy_loss, (first, second))
    one = torch.autograd.grad(mutual_kl_loss(first, second), first)[0]
    learning = 0.5 * F.kl_div(first.log_softmax(1), second.detach().softmax(1), reduction="batchmean")
    torch.testing.assert_close(one, torch.autograd.grad(learning, first)[0])


def test_order_of_samples_does_not_count_for_the_means(random) -> None:
    first, second = random(6, 3), random(6, 3)
    torch.testing.assert_close(mean_discrepancy_loss(first, second), mean_discrepancy_loss(first.flip(0), second))
    assert mean_discrepancy_loss(first, first.flip(0)) < 1e-28


def test_half_precision_is_widened(random) -> None:
    first, second = (random(4, 5).bfloat16().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mutual_kl_loss(first, second) + mean_discrepancy_loss(first, second)
    value.backward()
    assert value.dtype == torch.float32
    assert all(view.grad is not None and view.grad.abs().sum() > 0 for view in (first, second))


def test_bad_shapes_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        mutual_kl_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must have one width: 3 and 4"):
        mean_discrepancy_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        mutual_kl_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)
