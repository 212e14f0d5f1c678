"""Orders are permutations, split over ranks without a gap."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from kdlightning.data.sampler import EpochSampler, EvaluationSampler, ViewIndex


def test_index_carries_its_view_through_pickling() -> None:
    index = pickle.loads(pickle.dumps(ViewIndex(7, 3)))
    assert index == 7
    assert index.view == 3
    assert copy.copy(index).view == 3
    assert [10, 20, 30][ViewIndex(1, 5)] == 20


@given(size=st.integers(1, 60), epoch=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_each_epoch_is_a_permutation_that_can_be_had_again(size: int, epoch: int, seed: int) -> None:
    orders = []
    for _ in range(2):
        sampler = EpochSampler(range(size), seed=seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(size))
    assert {index.view for index in orders[0]} == {epoch}


def test_epochs_and_seeds_differ() -> None:
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            sampler = EpochSampler(range(50), seed=seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 9


@given(size=st.integers(1, 40), world=st.integers(1, 6), start=st.integers(0, 10))
def test_training_ranks_cover_everything_with_equal_counts(size: int, world: int, start: int) -> None:
    whole = EpochSampler(range(size), seed=1, world_size=1, rank=0).permutation()
    parts = []
    for rank in range(world):
        sampler = EpochSampler(range(size), seed=1, rank=rank, world_size=world)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == -(-size // world)
        sampler.start = start
        assert list(sampler) == parts[-1][start:]
        assert list(sampler) == parts[-1], "start counts once"
    joined = [parts[i % world][i // world] for i in range(size)]
    assert joined == whole


@given(size=st.integers(1, 40), world=st.integers(1, 6))
def test_evaluation_counts_no_sample_twice(size: int, world: int) -> None:
    samplers = [EvaluationSampler(range(size), rank=rank, world_size=world) for rank in range(world)]
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert min(map(len, parts)) > 0
    if size >= world:
        assert sorted(index for part in parts for index in part) == list(range(size))
    assert {index.view for part in parts for index in part} == {0}


def test_lightning_recognises_both() -> None:
    assert isinstance(EpochSampler(range(3)), DistributedSampler)
    assert not isinstance(EpochSampler(range(3)), SequentialSampler)
    assert isinstance(EvaluationSampler(range(3)), DistributedSampler)
    assert isinstance(EvaluationSampler(range(3)), SequentialSampler)


@pytest.mark.parametrize("own", [True, False])
def test_another_sampler_decides_the_order_and_is_seeded(own: bool) -> None:
    generator = torch.Generator() if own else None
    weighted = WeightedRandomSampler([0.0, 1.0, 1.0, 8.0], 40, generator=generator)
    before = torch.get_rng_state()
    sampler = EpochSampler(range(4), seed=2, order=weighted)
    first = list(sampler)
    assert list(sampler) == first
    assert len(first) == len(sampler) == 40
    assert 0 not in first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert torch.equal(before, torch.get_rng_state())
