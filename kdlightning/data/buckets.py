"""An order of training samples in which those of like length share a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from kdlightning.data.sampler import distributed_number


class LengthBuckets(Sampler[int]):
    """Windows of many batches of a random order, each sorted by length; the batches then come in random order.

    It decides the order of an `EpochSampler`, which seeds it from (seed, epoch): another order in each epoch, the same
    one again when a run is resumed. Ranks share out each run of `batch_size` × ranks samples of like length, so that
    all have batches of one length at a time, and equally many. The samples of an incomplete last batch are drawn at
    random and come last.

    Batches are no longer drawn independently of the length: terms that compare samples of a batch see alike ones.

    Args:
        lengths: `(N,)`, number of tokens of each sample.
        batch_size: samples in a batch, for each process.
        window: most batches in a window, which is at most a quarter of an epoch; more waste less padding, and mix
            batches less from epoch to epoch.
        world_size: number of processes; from `torch.distributed` by default.
    """

    def __init__(self, lengths: Tensor, batch_size: int, window: int = 50, world_size: int | None = None) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.window = window
        self._world_size = world_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.lengths))
        step = self.batch_size * distributed_number(self._world_size, "get_world_size", 1)
        whole = len(order) // step * step
        batches: list[Tensor] = []
        window = max(1, min(self.window, whole // step // 4))
        for part in order[:whole].split(step * window):
            batches += part[self.lengths[part].argsort(stable=True)].split(step)
        for number in torch.randperm(len(batches)).tolist():
            yield from batches[number].tolist()
        yield from order[whole:].tolist()
