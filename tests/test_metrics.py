"""Means and perplexities over batches of unequal weight; what embeddings are worth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.metrics import LinearCKA, NearestNeighbourAccuracy, PerplexityFromLoss, WeightedMean

PARTS = st.lists(st.tuples(st.floats(0, 100, width=32), st.integers(0, 50)), min_size=1, max_size=8)


@given(PARTS)
def test_mean_weighs_each_value(parts: list[tuple[float, int]]) -> None:
    metric = WeightedMean()
    for value, weight in parts:
        metric.update(torch.tensor(value), weight)
    total = sum(weight for _, weight in parts)
    if total:
        assert float(metric.compute()) == pytest.approx(sum(v * w for v, w in parts) / total, rel=1e-4, abs=1e-5)


def test_values_may_be_tensors_with_weights_of_their_own() -> None:
    metric = WeightedMean()
    metric.update(torch.tensor([1.0, 3.0]))
    metric.update(torch.tensor([5.0, 7.0]), torch.tensor([2.0, 0.0]))
    assert float(metric.compute()) == pytest.approx((1 + 3 + 10) / 4)


def test_a_nan_stays_visible_unless_its_weight_is_zero() -> None:
    metric = WeightedMean()
    metric.update(torch.tensor(float("nan")), 0.0)
    metric.update(torch.tensor(2.0))
    assert float(metric.compute()) == 2.0
    metric.update(torch.tensor(float("nan")))
    assert math.isnan(float(metric.compute()))


def test_perplexity_is_of_the_mean_over_tokens_and_not_the_mean_of_perplexities() -> None:
    metric = PerplexityFromLoss()
    metric.update(torch.tensor(1.0), 3)
    metric.update(torch.tensor(2.0), 1)
    assert float(metric.compute()) == pytest.approx(math.exp(5 / 4))


# -- embeddings --------------------------------------------------------------------------------------------------------


def alignment(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA by Gram matrices, in float64."""
    grams = []
    for rows in (x.double(), y.double()):
        centred = rows - rows.mean(0)
        grams.append(centred @ centred.T)
    return float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_linear_cka_is_that_of_all_samples_at_once(offset: float) -> None:
    x, metric = torch.randn(50, 6) + offset, LinearCKA()
    y = x[:, :3] + 0.7 * torch.randn(50, 3)
    for part in (slice(0, 31), slice(31, 32), slice(32, 50)):
        metric.update(x[part], y[part])
    assert float(metric.compute()) == pytest.approx(alignment(x, y), rel=1e-4)
    metric.reset()
    metric.update(x, x @ torch.linalg.qr(torch.randn(6, 6))[0] * 2 - 1)
    assert float(metric.compute()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_linear_cka_of_a_constant_is_zero(value: float) -> None:
    metric = LinearCKA()
    metric.update(torch.randn(20, 3), torch.full((20, 4), value))
    assert float(metric.compute()) == 0.0


def test_neighbours_vote_by_similarity_and_not_for_themselves() -> None:
    vectors, labels = torch.nn.functional.normalize(torch.randn(40, 3)), torch.randint(4, (40,))
    metric = NearestNeighbourAccuracy(5)
    metric.update(7 * vectors[:25], labels[:25])
    metric.update(vectors[25:], labels[25:])
    right = 0
    for i in range(40):
        others = sorted(((float(vectors[i] @ vectors[j]), j) for j in range(40) if j != i), reverse=True)[:5]
        votes = [0.0] * 4
        for similarity, j in others:
            votes[labels[j]] += math.exp(similarity / 0.07)
        right += votes.index(max(votes)) == labels[i]
    assert float(metric.compute()) == pytest.approx(right / 40)


def test_few_samples_are_enough_for_neighbours() -> None:
    metric = NearestNeighbourAccuracy(20)
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(metric.compute()) == 0.0
    metric.update(torch.tensor([[1.0, 0.1], [1.0, 0.2]]), torch.tensor([0, 0]))
    assert float(metric.compute()) == 1.0
