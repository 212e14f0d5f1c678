"""What several networks say together, against loops, grids and another solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import (
    kd_loss,
    kdcl_error_products,
    kdcl_general_weights,
    kdcl_linear,
    kdcl_linear_weights,
    kdcl_min_logit,
    kdcl_naive,
    mean_probability_logits,
    weighted_probability_logits,
)

LABELS = torch.tensor([0, 4, 2, 2, 1, 3, 0, 1])


def answers(count: int, sure: float = 1.0, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Logits of networks that know the label, each in some samples more than in others."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(LABELS), 5, generator=generator, dtype=torch.float64)
    hints = sure * torch.rand(count, len(LABELS), 1, generator=generator, dtype=torch.float64) * 4
    return list(scale * (noise + hints * F.one_hot(LABELS, 5)))


def cross_entropy(weights: Tensor, logits: list[Tensor]) -> float:
    return float(F.cross_entropy(sum(w * z for w, z in zip(weights, logits, strict=True)), LABELS))


def test_naive_is_the_network_of_the_lowest_cross_entropy() -> None:
    for seed in range(5):
        logits = answers(4, seed=seed)
        losses = [-sum(float(z.log_softmax(1)[i, y]) for i, y in enumerate(LABELS)) for z in logits]
        assert torch.equal(kdcl_naive(logits, LABELS), logits[losses.index(min(losses))])
    soft = torch.rand(8, 5, dtype=torch.float64).softmax(1)
    losses = [float(-(soft * z.log_softmax(1)).sum()) for z in logits]
    assert torch.equal(kdcl_naive(logits, soft), logits[losses.index(min(losses))])


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
def test_linear_of_two_is_the_best_of_a_dense_grid(scale: float) -> None:
    for seed in range(3):
        logits = answers(2, sure=0.5, scale=scale, seed=seed)
        grid = [cross_entropy(torch.tensor([a, 1 - a]), logits) for a in np.linspace(0, 1, 2001)]
        even = cross_entropy(torch.tensor([0.5, 0.5]), logits)
        for kind in (torch.float64, torch.float32):
            weights = kdcl_linear_weights([z.to(kind) for z in logits], LABELS)
            assert weights.dtype == kind
            assert weights.min() >= 0
            assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
            assert cross_entropy(weights.double(), logits) <= min(grid) + 1e-5 * even + 2e-7
    mixed = sum(w * z for w, z in zip(weights.double(), logits, strict=True))
    torch.testing.assert_close(kdcl_linear([z.float() for z in logits], LABELS).double(), mixed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [3, 4, 6])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_linear_of_more_is_as_good_as_another_solver(count: int, scale: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits = answers(count, sure=0.5, scale=scale, seed=count)
    even = np.full(count, 1 / count)
    best = optimize.minimize(
        lambda w: cross_entropy(torch.from_numpy(w), logits),
        even,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    least, first = float(best.fun), cross_entropy(torch.from_numpy(even), logits)
    for kind in (torch.float64, torch.float32):
        weights = kdcl_linear_weights([z.to(kind) for z in logits], LABELS).double()
        assert cross_entropy(weights, logits) <= least + 1e-5 * first + 2e-7


def test_linear_of_soft_targets_and_of_extremes() -> None:
    logits = answers(2)
    assert torch.allclose(
        kdcl_linear_weights(logits, F.one_hot(LABELS, 5).double()), kdcl_linear_weights(logits, LABELS), atol=1e-4
    )
    right, wrong = 1e6 * F.one_hot(LABELS, 5).float(), -1e6 * F.one_hot(LABELS, 5).float()
    assert kdcl_linear_weights([wrong, right, wrong], LABELS)[1] > 0.5
    assert kdcl_linear_weights([right, right], LABELS).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert kdcl_linear_weights([right], LABELS).tolist() == [1.0]


def test_min_logit_is_the_smallest_difference_to_the_labels() -> None:
    logits = answers(3)
    target = kdcl_min_logit(logits, LABELS)
    for i, y in enumerate(LABELS.tolist()):
        for c in range(5):
            assert target[i, c] == min(z[i, c] - z[i, y] for z in logits)
    # The label is the more probable of it than of any network.
    share = target.softmax(1).gather(1, LABELS[:, None])
    assert all((share >= z.softmax(1).gather(1, LABELS[:, None]) - 1e-12).all() for z in logits)


def test_error_products_are_the_formula() -> None:
    logits = answers(3)
    products = kdcl_error_products(logits, LABELS)
    for j, k in itertools.product(range(3), repeat=2):
        expected = 0.0
        for i, y in enumerate(LABELS.tolist()):
            for c in range(5):
                mine, other = (float(logits[n][i].softmax(0)[c]) - (c == y) for n in (j, k))
                expected += mine * other
        assert float(products[j, k]) == pytest.approx(expected)
    torch.testing.assert_close(kdcl_error_products(logits, F.one_hot(LABELS, 5)), products)


def test_general_weights_are_the_closed_form_where_that_is_a_distribution() -> None:
    for count in (2, 3, 4):
        generator = torch.Generator().manual_seed(count)
        errors = torch.randn(count, 60, generator=generator, dtype=torch.float64)
        products = errors @ errors.T
        closed = torch.linalg.solve(products, torch.ones(count, dtype=torch.float64))
        closed = closed / closed.sum()
        assert closed.min() > 0
        torch.testing.assert_close(kdcl_general_weights(products), closed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kdcl_general_weights(products.float()), closed.float(), rtol=1e-3, atol=1e-3)


def test_general_weights_are_never_negative() -> None:
    # The second network errs as the first does, and more: the closed form gives it less than nothing.
    products = torch.tensor([[1.0, 1.5], [1.5, 4.0]])
    assert kdcl_general_weights(products).tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
    assert kdcl_general_weights(torch.zeros(3, 3)).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mean_probability_logits_soften_to_the_mean(temperature: float) -> None:
    logits = answers(3)
    mean = sum((z / temperature).softmax(1) for z in logits) / 3
    torch.testing.assert_close(
        (mean_probability_logits(logits, temperature=temperature) / temperature).softmax(1), mean
    )
    mixed = 0.2 * logits[0].softmax(1) + 0.8 * logits[2].softmax(1)
    weights = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64)
    torch.testing.assert_close(weighted_probability_logits(logits, weights).exp(), mixed)


FUNCTIONS = [kdcl_naive, kdcl_linear, kdcl_min_logit, lambda z, y: mean_probability_logits(z)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_targets_have_no_graph_and_half_precision_is_widened(function) -> None:
    logits = [z.bfloat16().requires_grad_() for z in answers(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = function(logits, LABELS)
    assert target.dtype == torch.float32
    assert not target.requires_grad
    student = answers(1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, target.double(), temperature=2.0), student)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="one shape"):
        kdcl_naive([torch.zeros(2, 3), torch.zeros(2, 4)], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="none at all"):
        mean_probability_logits([])
    with pytest.raises(ValueError, match="one class number a sample"):
        kdcl_min_logit(answers(2), torch.rand(8, 5))
    with pytest.raises(ValueError, match="temperature"):
        mean_probability_logits(answers(2), temperature=0.0)
