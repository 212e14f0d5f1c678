"""Batches of like length: the whole set once an epoch, the same again on resume, alike on all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlightning import TextClassification
from kdlightning.data.buckets import LengthBuckets
from kdlightning.data.sampler import EpochSampler


def order_of(lengths: torch.Tensor, size: int, epoch: int, world: int = 1) -> list[list[int]]:
    """The order of each rank."""
    found = []
    for rank in range(world):
        buckets = LengthBuckets(lengths, size, world_size=world)
        sampler = EpochSampler(lengths, seed=3, order=buckets, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        found.append([int(index) for index in sampler])
    return found


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 3))
def test_every_sample_is_seen_and_ranks_have_equally_many(count: int, size: int, world: int) -> None:
    lengths = torch.randint(1, 30, (count,), generator=torch.Generator().manual_seed(count))
    ranks = order_of(lengths, size, 0, world)
    assert {index for rank in ranks for index in rank} == set(range(count))
    assert len({len(rank) for rank in ranks}) == 1
    if world == 1:
        assert sorted(ranks[0]) == list(range(count))


def test_epochs_differ_and_repeat() -> None:
    lengths = torch.arange(1000) % 37
    first, second = (order_of(lengths, 8, epoch)[0] for epoch in (0, 1))
    assert first != second
    assert order_of(lengths, 8, 0)[0] == first
    batches = [frozenset(first[k : k + 8]) for k in range(0, 1000, 8)]
    assert not set(batches) & {frozenset(second[k : k + 8]) for k in range(0, 1000, 8)}, "batches are mixed anew"
    middle = [sum(int(lengths[n]) for n in first[k : k + 8]) for k in range(0, 1000, 8)]
    assert middle != sorted(middle), "and come in random order"


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_has_texts_of_like_length_on_every_rank(world: int) -> None:
    lengths = torch.randint(4, 60, (1003,), generator=torch.Generator().manual_seed(0))
    ranks = order_of(lengths, 8, 0, world)
    padding = []
    for start in range(0, len(ranks[0]) - 8, 8):
        together = torch.cat([lengths[rank[start : start + 8]] for rank in ranks])
        padding.append(1 - together.float().mean() / together.max())
    assert float(torch.stack(padding).mean()) < 0.1
    plain = lengths[: 8 * world * (1003 // (8 * world))].view(-1, 8 * world).float()
    assert float((1 - plain.mean(1) / plain.amax(1)).mean()) > 0.3


def test_a_loader_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    records = [{"text": "word " * (1 + i * i % 23), "label": i % 2} for i in range(90)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"vocab_size": 40, "batch_size": 7, "val_split": 10, "seed": 5, "length_bucketing": True}
    whole = TextClassification(str(tmp_path), **options).train_dataloader()
    expected = [batch.index.tolist() for batch in whole]
    assert sorted(sum(expected, [])) == list(range(80))
    fresh = TextClassification(str(tmp_path), **options).train_dataloader()
    steps = iter(fresh)
    for _ in range(4):
        next(steps)
    state, again = fresh.state_dict(), TextClassification(str(tmp_path), **options).train_dataloader()
    again.load_state_dict(state)
    assert [batch.index.tolist() for batch in again] == expected[4:]
