"""Splits are disjoint, complete and balanced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.data.splits import held_out_count, stratified
from kdlightning.errors import ConfigurationError


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_split_is_disjoint_complete_and_balanced(labels: list[int], share: float, seed: int) -> None:
    count = int(share * len(labels))
    drawn, left = stratified(labels, count, seed=seed)
    assert len(drawn) == count
    assert sorted([*drawn.tolist(), *left.tolist()]) == list(range(len(labels)))
    values = torch.tensor(labels)
    for label in set(labels):
        exact = labels.count(label) * count / len(labels)
        assert abs(int((values[drawn] == label).sum()) - exact) < 1
    again = stratified(labels, count, seed=seed)
    assert torch.equal(again[0], drawn)


def test_split_without_labels_is_random() -> None:
    drawn, left = stratified(100, 30, seed=0)
    assert len(drawn) == 30
    assert not set(drawn.tolist()) & set(left.tolist())
    assert drawn.tolist() != stratified(100, 30, seed=1)[0].tolist()


@pytest.mark.parametrize(("val_split", "count"), [(0.1, 10), (0.001, 1), (25, 25), (0, 0), (0.99, 99)])
def test_held_out_count(val_split: float, count: int) -> None:
    assert held_out_count(val_split, 100) == count


@pytest.mark.parametrize(
    ("val_split", "message"),
    [
        (0.999, "leaves none"),
        (-0.1, "got -0.1"),
        (1.5, "below 1 or a whole number"),
        (100, "val_split=100 leaves none of the 100"),
    ],
)
def test_bad_val_split_is_refused(val_split: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        held_out_count(val_split, 100)
