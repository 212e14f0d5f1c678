"""A view of a sample is a function of seed, view and number."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from kdlightning.data.batch import LoadedBatch
from kdlightning.data.sampler import ViewIndex
from kdlightning.data.views import IndexedViews, indexed_collate, labels_of
from kdlightning.errors import ConfigurationError


def test_views_replay_and_differ(noisy: Any) -> None:
    data = IndexedViews(noisy(), seed=3)
    again = IndexedViews(noisy(), seed=3)
    assert torch.equal(data[ViewIndex(5, 2)].data, again[ViewIndex(5, 2)].data)
    assert torch.equal(data[5].data, again[ViewIndex(5, 0)].data)
    others = [
        data[ViewIndex(5, 1)].data,
        data[ViewIndex(6, 2)].data,
        IndexedViews(noisy(), seed=4)[ViewIndex(5, 2)].data,
    ]
    for other in others:
        assert (other[1:] != data[ViewIndex(5, 2)].data[1:]).all()


def test_reading_leaves_no_trace_in_the_generators(noisy: Any) -> None:
    data = IndexedViews(noisy(), seed=3)
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    data[3], data.__getitems__([1, 2])
    indexed_collate(lambda items: torch.rand(2), seed=1)([data[0]])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]


def test_batch_has_numbers_views_and_further_augmentations(noisy: Any) -> None:
    data = IndexedViews(noisy(), seed=3, views=3)
    batch = indexed_collate()(data.__getitems__([ViewIndex(4, 1), ViewIndex(2, 1)]))
    assert batch.index.tolist() == [4, 2]
    assert batch.view.tolist() == [1, 1]
    assert len(batch.views) == 2
    for view in batch.views:
        assert view[:, 0].tolist() == [4, 2]
        assert (view[:, 1:] != batch.data[:, 1:]).all()
    assert (batch.views[0] != batch.views[1])[:, 1:].all()
    assert torch.equal(IndexedViews(noisy(), seed=3)[ViewIndex(4, 1)].data, batch.data[0]), "view 0 is the usual one"


def test_a_stock_loader_works_with_it() -> None:
    data = IndexedViews([(torch.tensor([float(i)]), i) for i in range(7)])
    batches = list(DataLoader(data, batch_size=4, collate_fn=indexed_collate()))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
    assert batches[1].data[1].tolist() == [4, 5, 6]


def test_random_collate_function_replays() -> None:
    def mask(items: list[Any]) -> torch.Tensor:
        return torch.rand(len(items)) * random.random()

    data = IndexedViews(range(8), seed=1)
    collate = indexed_collate(mask, seed=1)
    first = collate(data.__getitems__([ViewIndex(0, 1), ViewIndex(1, 1)])).data
    assert torch.equal(collate(data.__getitems__([ViewIndex(0, 1), ViewIndex(1, 1)])).data, first)
    assert not torch.equal(collate(data.__getitems__([ViewIndex(0, 2), ViewIndex(1, 2)])).data, first)


def test_declared_sources_spare_the_other_generators(noisy: Any) -> None:
    data = noisy()
    data.random_sources = ("torch",)
    wrapped = IndexedViews(data, seed=1)
    first, second = wrapped[0].data, wrapped[0].data
    assert first[1] == second[1]
    assert first[2] != second[2]


def test_collate_survives_pickling() -> None:
    assert isinstance(pickle.loads(pickle.dumps(indexed_collate(None, 3))), type(indexed_collate()))


@pytest.mark.parametrize(
    ("dataset", "views", "message"),
    [
        ([], 1, "list is empty"),
        (iter([1]), 1, "needs a map-style data set"),
        ([1], 0, "views must be at least 1, got 0"),
    ],
)
def test_bad_data_are_refused(dataset: Any, views: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        IndexedViews(dataset, views=views)


def test_loaded_batch_moves_as_a_whole() -> None:
    x = torch.zeros(2, 3)
    batch = LoadedBatch({"x": x, "more": (x, [x])}, torch.arange(2), torch.zeros(2).long(), ((x, x),))
    moved = batch.to("meta")
    assert moved.data["x"].device.type == "meta"
    assert moved.data["more"][1][0].device.type == "meta"
    assert moved.index.device.type == moved.view.device.type == "meta"
    assert moved.views[0][1].device.type == "meta"
    assert batch.data["x"].device.type == "cpu"


def test_labels_of_a_data_set_without_reading_it() -> None:
    labels = torch.tensor([2, 0, 1, 2])
    pairs = TensorDataset(torch.zeros(4, 3), labels)
    assert torch.equal(labels_of(pairs), labels)
    assert torch.equal(labels_of(IndexedViews(Subset(pairs, [3, 1]))), torch.tensor([2, 0]))
    assert labels_of(TensorDataset(torch.zeros(4, 3), torch.rand(4, 2))) is None
    assert labels_of([(torch.zeros(3), 1)]) is None
