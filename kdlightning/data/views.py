"""Any map-style data set, with sample numbers and with views that can be shown again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from kdlightning.data.batch import LoadedBatch
from kdlightning.data.partners import Partners
from kdlightning.data.seeding import (
    RANDOM_SOURCES,
    default_seed,
    mix,
    mix_tensors,
    restored_generators,
    seed_generators,
)
from kdlightning.errors import ConfigurationError

_PARTNER = -3
"""Its own place in the seeds, apart from those of views and batches."""


@runtime_checkable
class BatchLoading(Protocol):
    """A data set that makes a whole batch at once, which is much faster than sample by sample for arrays."""

    def select(self, rows: Tensor) -> Any:
        """A data set of some of the samples `(N,)`, int64."""

    def load(self, indices: Tensor, seeds: Tensor) -> Any:
        """The collated batch of `indices` `(B,)`, int64; what is random in sample n comes from `seeds[n]` alone."""


@dataclass
class IndexedItem:
    """A sample of `IndexedViews`.

    Attributes:
        data: the wrapped data set's sample under the wanted view.
        index: its number.
        view: number of the view.
        views: the sample under further augmentations.
        partner: another sample of its class, where partners were asked for.
    """

    data: Any
    index: int
    view: int
    views: tuple[Any, ...] = ()
    partner: Any = None


class IndexedViews(Dataset):
    """Wraps a map-style data set: each sample comes with its number, and its randomness depends on (view, number).

    Before a sample is read, the global generators are seeded from `mix(seed, view, index)`; afterwards they are put
    back. The same view of a sample is therefore the same in any epoch, process and number of workers. The view is
    that of the `ViewIndex` by which the data set is indexed, and 0 for a plain integer.

    A data set whose attribute `random_sources` names the generators that it draws from (of `"torch"`, `"python"`,
    `"numpy"`) saves the time for the others; without it all three are seeded. A data set that draws from a generator
    of its own (`numpy.random.default_rng()`) is out of reach.

    Args:
        dataset: with `__getitem__` and `__len__`.
        seed: the run's seed by default.
        views: number of augmentations of each sample in a batch; 1 means just the one.
        collated: let a data set that can load whole batches do so (`BatchLoading`); for loaders without a
            collate function of their own.
        further: the same samples under another, stronger augmentation: every view but the first comes from it.
        partners: give for each sample another one of its class as well, drawn anew in each view.

    Raises:
        ConfigurationError: for a data set without a length, an empty one, fewer than one view, other samples in
            `further`, or partners of a data set that does not tell its classes.

    Example:
        >>> data = IndexedViews([(torch.zeros(3), 0), (torch.ones(3), 1)])
        >>> data[1].index, data[1].data[1]
        (1, 1)
    """

    def __init__(
        self,
        dataset: Any,
        seed: int | None = None,
        views: int = 1,
        *,
        collated: bool = False,
        further: Any = None,
        partners: bool = False,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ConfigurationError(
                f"{type(dataset).__name__} has no length or cannot be indexed: IndexedViews needs a map-style data set"
            )
        if len(dataset) == 0:
            raise ConfigurationError(f"{type(dataset).__name__} is empty: give a data set with at least one sample")
        if views < 1:
            raise ConfigurationError(f"views must be at least 1, got {views}")
        if further is not None and len(further) != len(dataset):
            raise ConfigurationError(
                f"further has {len(further)} samples and the data set {len(dataset)}: give the same samples in order"
            )
        self.dataset = dataset
        self.seed = default_seed() if seed is None else seed
        self.views = views
        self.further = dataset if further is None else further
        self.collated = collated and _loads_batches(self.dataset) and _loads_batches(self.further)
        self.partners = _partners(dataset) if partners else None
        sources = [getattr(data, "random_sources", RANDOM_SOURCES) for data in (self.dataset, self.further)]
        self.random_sources: tuple[str, ...] = tuple(dict.fromkeys(name for names in sources for name in names))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> IndexedItem:
        with restored_generators(self.random_sources):
            return self._item(index)

    def __getitems__(self, indices: Sequence[int]) -> list[IndexedItem] | LoadedBatch:
        """What a loader asks for: the items of a batch, or the batch itself if the data set can load it whole."""
        if self.collated:
            return self._batch(indices)
        with restored_generators(self.random_sources):
            return [self._item(index) for index in indices]

    def _item(self, index: int) -> IndexedItem:
        number, view = int(index), int(getattr(index, "view", 0))
        samples = []
        for k in range(self.views):
            seed_generators(mix(self.seed, view, number, k), self.random_sources)
            samples.append((self.further if k else self.dataset)[number])
        return IndexedItem(samples[0], number, view, tuple(samples[1:]), self._partner(number, view))

    def _partner(self, number: int, view: int) -> Any:
        if self.partners is None:
            return None
        seed = mix(self.seed, view, number, _PARTNER)
        seed_generators(mix(seed, 1), self.random_sources)
        return self.dataset[int(self.partners(torch.tensor([number]), torch.tensor([seed])))]

    def _batch(self, indices: Sequence[int]) -> LoadedBatch:
        index = torch.tensor(indices)
        view = torch.tensor([getattr(i, "view", 0) for i in indices])
        if self.random_sources:
            seeds = [mix_tensors(self.seed, view, index, k) for k in range(self.views)]
        else:
            seeds = [torch.zeros_like(index)] * self.views
        partners = None
        if self.partners is not None:
            drawn = mix_tensors(self.seed, view, index, _PARTNER)
            partners = self.dataset.load(self.partners(index, drawn), mix_tensors(drawn, 1))
        batches = [(self.further if k else self.dataset).load(index, of_view) for k, of_view in enumerate(seeds)]
        return LoadedBatch(batches[0], index, view, tuple(batches[1:]), partners)


def _partners(dataset: Any) -> Partners:
    labels = labels_of(dataset)
    if labels is None:
        raise ConfigurationError(
            f"{type(dataset).__name__} does not tell its classes, by which partners are drawn: give it an attribute "
            "labels of class numbers, one a sample"
        )
    return Partners(labels)


def _loads_batches(dataset: Any) -> bool:
    """Whether whole batches can be asked for: a transform works sample by sample, whatever else the data set can do."""
    return isinstance(dataset, BatchLoading) and getattr(dataset, "transform", None) is None


def labels_of(dataset: Any) -> Tensor | None:
    """The class numbers of a data set `(N,)` where it tells them without being read sample by sample, else None.

    Asks for an attribute `labels` or `targets` (as torchvision's data sets have it), and looks through `IndexedViews`,
    `Subset` and `TensorDataset`.
    """
    if isinstance(dataset, IndexedViews):
        return labels_of(dataset.dataset)
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        found: Any = dataset.tensors[1]
    else:
        found = getattr(dataset, "labels", getattr(dataset, "targets", None))
    if found is None or not hasattr(dataset, "__len__"):
        return None
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels.long() if labels.shape == (len(dataset),) and not labels.is_floating_point() else None


class IndexedCollate:
    """Makes a `LoadedBatch` of items of `IndexedViews`; picklable, so that workers can be spawned.

    Args:
        inner: collates the samples of the wrapped data set; torch's default by default. The global generators are
            seeded for each batch while it runs, so that a random collate function (masking, mixing) replays as well.
        seed: the run's seed by default.
        mixing: mixes the finished batch; see `kdlightning.data.mixing.Mixing`.
    """

    def __init__(
        self,
        inner: Callable[[list[Any]], Any] | None = None,
        seed: int | None = None,
        mixing: Callable[[LoadedBatch], LoadedBatch] | None = None,
    ) -> None:
        self.inner = default_collate if inner is None else inner
        self.seed = default_seed() if seed is None else seed
        self.mixing = mixing

    def __call__(self, items: list[IndexedItem] | LoadedBatch) -> LoadedBatch:
        batch = items if isinstance(items, LoadedBatch) else self._collated(items)
        return batch if self.mixing is None else self.mixing(batch)

    def _collated(self, items: list[IndexedItem]) -> LoadedBatch:
        further = len(items[0].views)
        if self.inner is default_collate:
            data = self.inner([item.data for item in items])
            views = tuple(self.inner([item.views[k] for item in items]) for k in range(further))
            partners = self._partners(items)
        else:
            with restored_generators():
                seed_generators(mix(self.seed, items[0].view, items[0].index, len(items), -1))
                data = self.inner([item.data for item in items])
                views = tuple(self.inner([item.views[k] for item in items]) for k in range(further))
                partners = self._partners(items)
        index, view = ([getattr(item, name) for item in items] for name in ("index", "view"))
        return LoadedBatch(data, torch.tensor(index), torch.tensor(view), views, partners)

    def _partners(self, items: list[IndexedItem]) -> Any:
        return None if items[0].partner is None else self.inner([item.partner for item in items])


def indexed_collate(inner: Callable[[list[Any]], Any] | None = None, seed: int | None = None) -> IndexedCollate:
    """A collate function for a loader over `IndexedViews`.

    Args:
        inner: collates the samples of the wrapped data set; torch's default by default.
        seed: for a random `inner`; the run's seed by default.
    """
    return IndexedCollate(inner, seed)
