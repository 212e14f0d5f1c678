"""Means and perplexities over batches of unequal weight."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.metrics import PerplexityFromLoss, WeightedMean

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
