"""For each sample another one of its class, the same for each (seed, view, number)."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from kdlightning import Classification, Digits
from kdlightning.data.arrays import ArrayData
from kdlightning.data.batch import LoadedBatch
from kdlightning.data.loader import ResumableLoader
from kdlightning.data.partners import Partners
from kdlightning.data.sampler import ViewIndex
from kdlightning.data.seeding import mix, mix_tensors
from kdlightning.data.views import IndexedViews, indexed_collate
from kdlightning.errors import ConfigurationError

LABELS = torch.tensor([2, 0, 1, 2, 0, 2, 2, 5, 0, 2])


class Numbered(Dataset):
    """Sample n is (n, noise) with its class; torch, python and numpy are taken as its sources."""

    def __init__(self, labels: torch.Tensor = LABELS) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.stack([torch.tensor(float(number)), torch.rand(())]), int(self.labels[number])


def seeds_of(count: int) -> torch.Tensor:
    return mix_tensors(5, torch.arange(count))


def partners_of(loader: Any, epoch: int = 0) -> dict[int, tuple[float, float]]:
    """What each sample's partner shows: number and noise."""
    loader.sampler.set_epoch(epoch)
    return {
        number: tuple(row)
        for batch in loader
        for number, row in zip(batch.index.tolist(), batch.partners[0].tolist(), strict=True)
    }


@given(st.lists(st.integers(-3, 4), min_size=1, max_size=40), st.integers(0, 2**63 - 1))
def test_a_partner_is_another_sample_of_the_class(labels: list[int], seed: int) -> None:
    draw = Partners(torch.tensor(labels))
    index = torch.arange(len(labels))
    partners = draw(index, mix_tensors(seed, index)).tolist()
    sizes = Counter(labels)
    for number, partner in enumerate(partners):
        assert labels[partner] == labels[number]
        assert (partner == number) == (sizes[labels[number]] == 1)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.data())
def test_every_other_member_has_seeds_that_draw_it(labels: list[int], data: Any) -> None:
    draw = Partners(torch.tensor(labels))
    number = data.draw(st.integers(0, len(labels) - 1))
    others = {other for other, label in enumerate(labels) if label == labels[number] and other != number}
    seeds = torch.arange(max(len(others), 1))
    found = draw(torch.full_like(seeds, number), seeds).tolist()
    assert sorted(found) == sorted(others or {number}), "as many seeds in a row give each of them once"


@given(st.permutations(range(12)), st.integers(0, 100))
def test_what_is_drawn_depends_on_the_samples_own_seed_alone(order: list[int], seed: int) -> None:
    draw = Partners(torch.arange(12) % 3)
    index, seeds = torch.arange(12), mix_tensors(seed, torch.arange(12))
    whole = draw(index, seeds)
    shuffled = torch.tensor(order)
    assert torch.equal(draw(shuffled, seeds[shuffled]), whole[shuffled])


def test_partners_are_drawn_evenly() -> None:
    draw, count = Partners(LABELS), 40_000
    for number, label in ((0, 2), (1, 0)):
        drawn = Counter(draw(torch.full((count,), number), seeds_of(count)).tolist())
        others = [other for other in range(10) if LABELS[other] == label and other != number]
        assert set(drawn) == set(others)
        expected = count / len(others)
        chi = sum((drawn[other] - expected) ** 2 / expected for other in others)
        assert chi < 20, "four degrees of freedom exceed it once in two thousand times"


def test_a_sample_alone_in_its_class_is_its_own_partner() -> None:
    draw = Partners(LABELS)
    assert draw(torch.tensor([2, 7]), torch.tensor([123, 9])).tolist() == [2, 7]
    assert Partners(torch.tensor([4]))(torch.tensor([0]), torch.tensor([2**62])).tolist() == [0]


def test_a_pair_is_each_others_partner() -> None:
    draw = Partners(torch.tensor([1, 0, 1]))
    assert draw(torch.tensor([0, 2, 0]), torch.tensor([0, 1, 2**63 - 1])).tolist() == [2, 0, 2]


def test_partners_of_items_replay_and_change_with_view_and_seed() -> None:
    data = IndexedViews(Numbered(torch.zeros(50).long()), seed=3, partners=True)
    again = IndexedViews(Numbered(torch.zeros(50).long()), seed=3, partners=True)
    others = IndexedViews(Numbered(torch.zeros(50).long()), seed=4, partners=True)
    first = [data[ViewIndex(number, 2)].partner for number in range(50)]
    for number, (x, label) in enumerate(first):
        replayed = again[ViewIndex(number, 2)].partner
        assert torch.equal(x, replayed[0])
        assert label == replayed[1]
        assert x[0] != number
    for elsewhere in ([data[ViewIndex(number, 3)] for number in range(50)], [others[n] for n in range(50)]):
        same = sum(float(item.partner[0][0] == x[0]) for item, (x, _) in zip(elsewhere, first, strict=True))
        assert same < 10


def test_partners_leave_the_sample_and_the_generators_as_they_are() -> None:
    plain, paired = (IndexedViews(Numbered(), seed=3, views=2, partners=partners) for partners in (False, True))
    before = torch.get_rng_state()
    for number in range(10):
        mine, other = paired[ViewIndex(number, 1)], plain[ViewIndex(number, 1)]
        assert torch.equal(mine.data[0], other.data[0])
        assert torch.equal(mine.views[0][0], other.views[0][0])
        assert other.partner is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_partners_noise_is_its_own() -> None:
    """A partner that is in the batch as well is seen under another augmentation there."""
    data = IndexedViews(Numbered(torch.zeros(4).long()), seed=3, partners=True)
    shown = {number: float(data[number].data[0][1]) for number in range(4)}
    for number in range(4):
        partner, noise = data[number].partner[0].tolist()
        assert noise != shown[int(partner)]


@pytest.mark.parametrize("workers", [0, 2])
def test_partners_are_the_same_for_any_number_of_workers(workers: int) -> None:
    def loader(count: int) -> ResumableLoader:
        return ResumableLoader(IndexedViews(Numbered(), 3, partners=True), 4, True, seed=3, num_workers=count)

    ours, alone = loader(workers), loader(0)
    epochs = [partners_of(ours, epoch) for epoch in (0, 1)]
    assert epochs == [partners_of(alone, epoch) for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    # Neither order nor batch size counts.
    assert partners_of(ResumableLoader(IndexedViews(Numbered(), 3, partners=True), 3, True, seed=9), 1) == epochs[1]


def test_whole_batches_and_single_samples_have_the_same_partners() -> None:
    inputs = torch.arange(30.0).view(30, 1)
    data = ArrayData(inputs, torch.arange(30) % 4)
    whole, single = (IndexedViews(data, 3, partners=True, collated=collated) for collated in (True, False))
    assert whole.collated
    numbers = [ViewIndex(number, 5) for number in (7, 3, 29, 0)]
    batch = whole.__getitems__(numbers)
    assert isinstance(batch, LoadedBatch)
    items = indexed_collate()(single.__getitems__(numbers))
    assert torch.equal(batch.partners[0], items.partners[0])
    assert torch.equal(batch.partners[1], items.partners[1])
    assert torch.equal(batch.partners[1], batch.data[1])
    drawn = Partners(data.labels)(batch.index, torch.tensor([mix(3, 5, n, -3) for n in batch.index.tolist()]))
    assert batch.partners[0].flatten().tolist() == drawn.tolist()


def test_augmented_whole_batches_replay() -> None:
    def jitter(raw: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return raw + (seeds % 1000).view(-1, 1) / 1000

    data = ArrayData(torch.arange(30.0).view(30, 1), torch.zeros(30).long(), augment=jitter)
    views = IndexedViews(data, 3, partners=True, collated=True)
    first, again, later = (
        views.__getitems__([ViewIndex(n, view) for n in numbers])
        for numbers, view in ((range(8), 0), (range(4, 8), 0), (range(8), 1))
    )
    assert torch.equal(first.partners[0][4:], again.partners[0])
    assert (first.partners[0] != later.partners[0]).any()
    assert (first.partners[0].floor() != first.data[0].floor()).all()


def test_a_stopped_loader_goes_on_with_the_same_partners() -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(IndexedViews(Numbered(), 3, partners=True), 4, True, seed=3)

    whole = [(batch.index.tolist(), batch.partners[0].tolist()) for batch in loader()]
    cut = loader()
    reader = iter(cut)
    next(reader)
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    assert [(batch.index.tolist(), batch.partners[0].tolist()) for batch in resumed] == whole[1:]


def test_partners_stay_inside_a_subset() -> None:
    rows = [9, 1, 7, 0, 4]
    data = IndexedViews(Subset(Numbered(), rows), seed=3, partners=True)
    for number, row in enumerate(rows):
        partner, label = data[number].partner
        assert int(partner[0]) in rows
        assert label == int(LABELS[row])
        assert (int(partner[0]) == row) == (row == 7)


def test_a_batch_with_partners_moves_as_a_whole() -> None:
    batch = indexed_collate()(IndexedViews(Numbered(), 3, partners=True).__getitems__([0, 1]))
    moved = batch.to("meta")
    assert [part.device.type for part in moved.partners] == ["meta", "meta"]
    assert batch.partners[0].device.type == "cpu"
    assert torch.equal(pickle.loads(pickle.dumps(batch)).partners[0], batch.partners[0])


def test_a_batch_with_partners_is_pinned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = indexed_collate()(IndexedViews(Numbered(), 3, partners=True).__getitems__([0, 1]))
    batch.pin_memory()
    assert {id(part) for part in batch.partners} <= {id(tensor) for tensor in pinned}


def test_a_task_takes_the_partners_inputs() -> None:
    loaded = indexed_collate()(IndexedViews(Numbered(), 3, partners=True).__getitems__([0, 1, 2]))
    batch = Classification(6).batch(loaded)
    assert torch.equal(batch.partners, loaded.partners[0])
    plain = indexed_collate()(IndexedViews(Numbered(), 3).__getitems__([0, 1, 2]))
    assert plain.partners is None
    assert Classification(6).batch(plain).partners is None


def test_inputs_by_name_have_partners_by_name() -> None:
    class Named(Numbered):
        def __getitem__(self, number: int) -> Any:
            x, label = super().__getitem__(number)
            return {"x": x, "labels": label}

    loaded = next(iter(DataLoader(IndexedViews(Named(), 3, partners=True), 4, collate_fn=indexed_collate())))
    batch = Classification(6).batch(loaded)
    assert set(batch.partners) == {"x"}
    assert torch.equal(loaded.partners["labels"], loaded.data["labels"])


def test_a_collate_function_of_ones_own_sees_partners_apart() -> None:
    def collate(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([x for x, _ in items]).neg(), torch.tensor([y for _, y in items])

    batch = indexed_collate(collate)(IndexedViews(Numbered(), 3, partners=True).__getitems__([0, 1, 4]))
    assert (batch.partners[0] <= 0).all()
    assert torch.equal(batch.partners[1], batch.data[1])


@pytest.mark.parametrize("data", [[(torch.zeros(3), 0)] * 4, TensorDataset(torch.zeros(4, 3), torch.rand(4, 2))])
def test_data_that_do_not_tell_their_classes_are_refused(data: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{type(data).__name__} does not tell its classes"):
        IndexedViews(data, partners=True)


def test_our_data_modules_give_partners_when_asked() -> None:
    data = Digits(batch_size=32, train_limit=64, pin_memory=False)
    data.ask_for_views(1, partners=True)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.partners[1], batch.data[1])
    assert (batch.partners[0] != batch.data[0]).flatten(1).any(1).all()
    assert next(iter(data.val_dataloader())).partners is None
    data.ask_for_views(1)
    assert next(iter(data.train_dataloader())).partners is None


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixed_classes_have_no_partners(options: dict[str, float]) -> None:
    data = Digits(batch_size=32, train_limit=64, pin_memory=False, **options)
    with pytest.raises(ConfigurationError, match="mixup and cutmix mix classes"):
        data.ask_for_views(1, partners=True)
    data.ask_for_views(2)
