"""What losses with a memory share between processes."""

from __future__ import annotations

import torch
from torch import Tensor


def from_all_ranks(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, outside the graph; as they are in a single process.

    Every process must have as many rows, as samplers for several processes see to.
    """
    tensor = tensor.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
