"""A loader that knows where it is, and continues there after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from kdlightning.data.sampler import EpochSampler, EvaluationSampler
from kdlightning.data.seeding import default_seed, mix
from kdlightning.data.views import IndexedCollate, IndexedViews
from kdlightning.errors import ConfigurationError


class ResumableLoader(DataLoader):
    """A `DataLoader` of `LoadedBatch`es whose every batch is a function of (seed, epoch, batch number).

    Lightning saves its state with each checkpoint and hands it back; the next pass then begins behind the batches
    that the run had already seen. The order comes from `EpochSampler` (training) or `EvaluationSampler`, the data set
    is wrapped by `IndexedViews`, and nothing is ever drawn from the global random generators. The batches are the
    same for any number of workers.

    Args:
        dataset: map-style; wrapped by `IndexedViews` unless it is.
        batch_size: samples in a batch, for each process; best given by name, as is `shuffle`: where Lightning makes a
            loader anew (for `predict`, `overfit_batches`), it cannot replace what was given by position.
        shuffle: True for training; otherwise samples come as they stand, each on one rank only.
        sampler: instead of `shuffle`: another order; it is iterated with seeded generators and split over the ranks.
        batch_sampler: instead of all of these; for Lightning, when it predicts. Such a loader starts from the front.
        seed: the run's seed by default.
        views: augmentations of each sample in a batch.
        collate_fn: for the samples of `dataset`.
        generator: seeds the workers; a loader's own by default.
        **options: further options of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        *,
        sampler: Sampler | None = None,
        batch_sampler: Any = None,
        seed: int | None = None,
        views: int = 1,
        collate_fn: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise ConfigurationError(
                f"{type(dataset).__name__} is an iterable data set, which cannot be resumed: give a map-style one"
            )
        if seed is None:
            seed = dataset.seed if isinstance(dataset, IndexedViews) else default_seed()
        if not isinstance(dataset, IndexedViews):
            dataset = IndexedViews(dataset, seed, views, collated=collate_fn is None)
        if not isinstance(collate_fn, IndexedCollate):
            collate_fn = IndexedCollate(collate_fn, seed)
        if batch_sampler is None:
            sampler = _epoch_sampler(dataset, shuffle, sampler, seed)
        self._pending: dict[str, int] | None = None
        self._position = (0, 0, 0)
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            batch_sampler=batch_sampler,
            collate_fn=collate_fn,
            generator=torch.Generator() if generator is None else generator,
            **options,
        )
        self.seed = seed
        self.views = views

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: the body runs at the first `next`. Lightning asks for the iterator before it sets the epoch,
        # and workers that were started then would prefetch the order of another epoch.
        sampler = self.sampler
        pending, self._pending = self._pending, None
        done = 0
        if isinstance(sampler, EpochSampler):
            if pending is not None and pending["epoch"] == sampler.epoch:
                sampler.repeats = pending["repeats"]
                done = pending["batches"]
            sampler.start = done * (self.batch_size or 1)
            self._position = (sampler.epoch, sampler.repeats, done)
        epoch, repeats, _ = self._position
        self.generator.manual_seed(mix(self.seed, epoch, repeats))
        for batch in super().__iter__():
            done += 1
            self._position = (epoch, repeats, done)
            yield batch
        if isinstance(sampler, EpochSampler) and sampler.epoch == epoch:
            sampler.repeats = repeats + 1

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: `epoch`, complete passes in it, batches handed out, and what these depend on."""
        if self._pending is not None:
            return dict(self._pending)
        epoch, repeats, batches = self._position
        sampler = self.sampler
        if isinstance(sampler, EpochSampler) and (sampler.epoch, sampler.repeats) != (epoch, repeats):
            epoch, repeats, batches = sampler.epoch, sampler.repeats, 0
        return {
            "epoch": epoch,
            "repeats": repeats,
            "batches": batches,
            "seed": self.seed,
            "batch_size": self.batch_size or 1,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where `state_dict` was taken, if the next pass is in the same epoch.

        Raises:
            ConfigurationError: if the state is of a loader with another seed or batch size.
        """
        for name, ours in (("seed", self.seed), ("batch_size", self.batch_size or 1)):
            theirs = state.get(name, ours)
            if theirs != ours and state["batches"]:
                raise ConfigurationError(
                    f"the checkpoint stopped within an epoch with {name} {theirs}, and this run has {ours}: "
                    f"resume with {name} {theirs}"
                )
        self._pending = dict(state)
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(state["epoch"])


def _epoch_sampler(dataset: Any, shuffle: bool | None, sampler: Any, seed: int) -> EpochSampler:
    if isinstance(sampler, EpochSampler):
        return sampler
    if sampler is None:
        return EpochSampler(dataset, seed=seed) if shuffle else EvaluationSampler(dataset)
    if shuffle:
        raise ConfigurationError("give either shuffle=True or sampler, not both")
    if isinstance(sampler, SequentialSampler):  # how Lightning asks for the same batches in each epoch
        return EpochSampler(dataset, seed=seed, shuffle=False)
    return EpochSampler(dataset, seed=seed, order=sampler)


def resumable(
    source: Any,
    *,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    seed: int | None = None,
    views: int = 1,
    **options: Any,
) -> ResumableLoader:
    """A resumable loader out of a data set, or out of a loader that somebody has already made.

    Args:
        source: a map-style data set, or a `DataLoader`, whose options are taken over.
        batch_size: samples in a batch; 64 for a data set, else the loader's.
        shuffle: True (training) for a data set, else as the loader does.
        seed: the run's seed by default.
        views: augmentations of each sample in a batch.
        **options: further options of `DataLoader`, over those of the loader.

    Raises:
        ConfigurationError: for an iterable data set, or a loader with a batch sampler of its own.

    Example:
        >>> loader = resumable([(torch.zeros(3), 0)] * 10, batch_size=4)
        >>> next(iter(loader)).index.shape
        torch.Size([4])
    """
    if not isinstance(source, DataLoader):
        return ResumableLoader(
            source,
            batch_size=64 if batch_size is None else batch_size,
            shuffle=(shuffle is None or shuffle) if options.get("sampler") is None else None,
            seed=seed,
            views=views,
            **options,
        )
    if isinstance(source, ResumableLoader):
        raise ConfigurationError("this loader is resumable already: use it as it is")
    if isinstance(source.dataset, IterableDataset):
        raise ConfigurationError("a loader of an iterable data set cannot be resumed: give a map-style data set")
    if type(source.batch_sampler) is not BatchSampler:
        raise ConfigurationError(
            f"a loader with {type(source.batch_sampler).__name__} cannot be resumed: give batch_size and sampler"
        )
    names = ("num_workers", "pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context")
    taken: dict[str, Any] = {name: getattr(source, name) for name in names}
    taken["persistent_workers"] = source.persistent_workers
    if source.num_workers:
        taken["prefetch_factor"] = source.prefetch_factor
    if source.collate_fn is not default_collate:
        taken["collate_fn"] = source.collate_fn
    if shuffle is None:
        shuffle, order = _order_of(source.sampler)
        if order is not None:
            taken["sampler"] = order
    return ResumableLoader(
        source.dataset,
        batch_size=source.batch_size if batch_size is None else batch_size,
        shuffle=shuffle,
        seed=seed,
        views=views,
        **{**taken, **options},
    )


def _order_of(sampler: Any) -> tuple[bool | None, Sampler | None]:
    if isinstance(sampler, SequentialSampler):
        return False, None
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle, None
    if isinstance(sampler, RandomSampler) and not sampler.replacement and sampler._num_samples is None:
        return True, None
    return None, sampler
