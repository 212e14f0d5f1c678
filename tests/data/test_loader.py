"""The loader's batches depend on seed, epoch and number alone, and it continues where it stopped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, WeightedRandomSampler

from kdlightning.data.loader import ResumableLoader, resumable
from kdlightning.data.sampler import EpochSampler, EvaluationSampler
from kdlightning.data.views import IndexedCollate, IndexedViews
from kdlightning.errors import ConfigurationError


def epoch_of(loader: ResumableLoader, epoch: int) -> list[list[float]]:
    loader.sampler.set_epoch(epoch)
    return [batch.data.flatten().tolist() for batch in loader]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_batches_do_not_depend_on_workers_or_history(workers: int, persistent: bool, noisy: Any) -> None:
    plain = [epoch_of(resumable(noisy(), batch_size=5, seed=1), epoch) for epoch in range(3)]
    loader = resumable(noisy(), batch_size=5, seed=1, num_workers=workers, persistent_workers=persistent)
    assert [epoch_of(loader, epoch) for epoch in (0, 1, 2, 0)] == [*plain, plain[0]]
    assert plain[0] != plain[1]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])
@pytest.mark.parametrize("stop", [1, 4])
def test_state_continues_in_the_middle_of_an_epoch(workers: int, persistent: bool, stop: int, noisy: Any) -> None:
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": persistent}
    loader = resumable(noisy(), batch_size=5, seed=1, **options)
    whole = epoch_of(loader, 2)
    loader.sampler.set_epoch(2)
    seen = [batch.data.flatten().tolist() for batch in itertools.islice(loader, stop)]
    state = loader.state_dict()
    assert state == {"epoch": 2, "repeats": 0, "batches": stop, "seed": 1, "batch_size": 5}

    other = resumable(noisy(), batch_size=5, seed=1, **options)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert len(other) == 5
    iterator = iter(other)  # asked for before the epoch is set, as Lightning does
    other.sampler.set_epoch(2)
    assert seen + [batch.data.flatten().tolist() for batch in iterator] == whole
    assert epoch_of(other, 3) == epoch_of(loader, 3)


def test_state_of_another_epoch_skips_nothing(noisy: Any) -> None:
    loader = resumable(noisy(), batch_size=5, seed=1)
    loader.load_state_dict({"epoch": 0, "repeats": 0, "batches": 5, "seed": 1, "batch_size": 5})
    assert len(epoch_of(loader, 1)) == 5


def test_state_after_set_epoch_is_that_of_the_coming_pass(noisy: Any) -> None:
    loader = resumable(noisy(), batch_size=5, seed=1)
    epoch_of(loader, 0)
    loader.sampler.set_epoch(1)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["batches"] == 0


def test_loop_without_set_epoch_gets_new_orders_and_resumes(noisy: Any) -> None:
    loader = resumable(noisy(), batch_size=5, seed=1)
    passes = [[batch.data.flatten().tolist() for batch in loader] for _ in range(3)]
    assert passes == [epoch_of(resumable(noisy(), batch_size=5, seed=1), epoch) for epoch in range(3)]
    loader = resumable(noisy(), batch_size=5, seed=1)
    list(loader)
    next(iter(loader))
    other = resumable(noisy(), batch_size=5, seed=1)
    other.load_state_dict(loader.state_dict())
    assert [batch.data.flatten().tolist() for batch in other] == passes[1][1:]


def test_loaders_never_draw_from_the_global_generator(noisy: Any) -> None:
    for workers in (0, 1):
        loaders = [resumable(noisy(), shuffle=shuffle, num_workers=workers) for shuffle in (True, False)]
        before = torch.get_rng_state()
        for loader in loaders:
            list(loader)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "value"), [("seed", 2), ("batch_size", 4)])
def test_state_of_another_run_is_refused(name: str, value: int, noisy: Any) -> None:
    loader = resumable(noisy(), batch_size=5, seed=1)
    next(iter(loader))
    other = resumable(noisy(), **{"batch_size": 5, "seed": 1, name: value})
    with pytest.raises(ConfigurationError, match=f"resume with {name} {getattr(loader, name)}"):
        other.load_state_dict(loader.state_dict())


def test_stock_loader_is_taken_over() -> None:
    data = [(torch.zeros(2), i) for i in range(10)]
    stock = DataLoader(data, batch_size=3, shuffle=True, drop_last=True, num_workers=1, prefetch_factor=3)
    ours = resumable(stock, seed=0)
    assert (ours.batch_size, ours.drop_last, ours.num_workers, ours.prefetch_factor) == (3, True, 1, 3)
    assert type(ours.sampler) is EpochSampler
    assert len(ours) == len(stock)
    assert type(resumable(DataLoader(data)).sampler) is EvaluationSampler
    weighted = resumable(DataLoader(data, sampler=WeightedRandomSampler([1.0] * 10, 7)), batch_size=7)
    assert next(iter(weighted)).index.shape == (7,)
    collated = resumable(DataLoader(data, batch_size=2, collate_fn=len))
    assert next(iter(collated)).data == 2


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Stream(), "cannot be resumed: give a map-style one"),
        (DataLoader(Stream()), "give a map-style data set"),
        (resumable([1]), "resumable already"),
        (
            DataLoader([1], batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler([1]), 1, False)),
            "Own cannot be resumed: give batch_size and sampler",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resumable(source)


def test_wrapping_twice_changes_nothing() -> None:
    views = IndexedViews([1, 2, 3], seed=9)
    loader = ResumableLoader(views, batch_size=2, shuffle=True, collate_fn=IndexedCollate(seed=9))
    assert loader.dataset is views
    assert loader.seed == 9
    assert next(iter(loader)).data.shape == (2,)
