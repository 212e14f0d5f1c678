"""The order of samples: a function of (seed, epoch) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.distributed
from torch.utils.data import Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from kdlightning.data.seeding import default_seed, mix, restored_generators, seed_generators


class ViewIndex(int):
    """A sample number that knows under which view (augmentation seed) the sample is wanted.

    An attribute of the data set would not reach persistent workers; the index itself does.
    """

    view: int

    def __new__(cls, index: int, view: int = 0) -> ViewIndex:
        self = super().__new__(cls, index)
        self.view = view
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ViewIndex, (int(self), self.view)


class EpochSampler(DistributedSampler):
    """The training order: a permutation drawn from (seed, epoch), split over the ranks.

    It is a `DistributedSampler`, so that Lightning neither replaces nor wraps it and calls `set_epoch`; but rank and
    world size are looked up when they are needed, since a loader may be made before the process group exists.
    A loop that never calls `set_epoch` gets a new order in each complete pass all the same.

    Args:
        data_source: anything with a length.
        seed: of the order; the run's seed by default.
        shuffle: False keeps the order `0, 1, 2, …`.
        order: another sampler that decides the order (a weighted one, say); it is iterated with seeded generators.
        rank: this process's number; from `torch.distributed` by default.
        world_size: number of processes; from `torch.distributed` by default.

    Attributes:
        epoch: set by `set_epoch`.
        repeats: complete passes since the epoch was set.
        start: samples (of this rank) that the next pass leaves out; the length stays that of the whole epoch.
    """

    pads = True  # ranks of unequal length would wait for each other for ever in the backward pass

    def __init__(
        self,
        data_source: Sized,
        *,
        seed: int | None = None,
        shuffle: bool = True,
        order: Sampler | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.data_source = data_source
        self.seed = default_seed() if seed is None else seed
        self.shuffle = shuffle
        self.order = order
        self.epoch = 0
        self.repeats = 0
        self.start = 0
        self._rank = rank
        self._world_size = world_size

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Number of this process."""
        return distributed_number(self._rank, "get_rank", 0)

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of processes."""
        return distributed_number(self._world_size, "get_world_size", 1)

    @property
    def view(self) -> int:
        """Number of the view that this pass shows."""
        return self.epoch + self.repeats

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation and the view of the next pass; Lightning calls this."""
        self.epoch = epoch
        self.repeats = 0

    def permutation(self) -> list[int]:
        """The order of all samples in this pass, before it is split over the ranks."""
        seed = mix(self.seed, self.view)
        if self.order is not None:
            with restored_generators():
                seed_generators(seed)
                generator = getattr(self.order, "generator", None)
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(seed)
                return [int(index) for index in self.order]
        if not self.shuffle:
            return list(range(len(self.data_source)))
        return torch.randperm(len(self.data_source), generator=torch.Generator().manual_seed(seed)).tolist()

    def __iter__(self) -> Iterator[ViewIndex]:
        order, view = self.permutation(), self.view
        length = len(self)
        if self.pads or len(order) < self.num_replicas:
            while len(order) < length * self.num_replicas:  # as DistributedSampler does; a loop, for tiny data
                order = order + order[: length * self.num_replicas - len(order)]
        start, self.start = self.start, 0
        for index in order[self.rank :: self.num_replicas][start:]:
            yield ViewIndex(index, view)

    def __len__(self) -> int:
        total = len(self.order) if isinstance(self.order, Sized) else len(self.data_source)
        whole, rest = divmod(total, self.num_replicas)
        if self.pads or not whole:
            return whole + bool(rest)
        return whole + (self.rank < rest)


class EvaluationSampler(EpochSampler, SequentialSampler):
    """The order of evaluation: as the data stands, view 0, each sample on one rank only.

    Ranks may get unequal counts, so that no metric counts a sample twice. (Only a data set with fewer samples than
    processes is repeated, because a rank without any batch would leave the others waiting.)
    It is a `SequentialSampler` too, by which Lightning knows that nothing is shuffled.

    Args:
        data_source: anything with a length.
        rank: this process's number; from `torch.distributed` by default.
        world_size: number of processes; from `torch.distributed` by default.
    """

    pads = False

    def __init__(self, data_source: Sized, *, rank: int | None = None, world_size: int | None = None) -> None:
        super().__init__(data_source, seed=0, shuffle=False, rank=rank, world_size=world_size)

    @property
    def view(self) -> int:
        """Always 0: evaluation shows the same data in every epoch."""
        return 0


def distributed_number(given: int | None, function: str, alone: int) -> int:
    """What a function of `torch.distributed` tells now, unless it is given; `alone` without a process group."""
    if given is not None:
        return given
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(getattr(torch.distributed, function)())
    return alone
