"""A whole network as one row of bytes, to send it from process to process."""

from __future__ import annotations

import copy

import torch
import torch.distributed
from torch import Tensor, nn


def packed(network: nn.Module) -> Tensor:
    """All parameters and buffers, bit for bit, in a new tensor of bytes."""
    parts = [tensor.reshape(-1).view(torch.uint8) for tensor in _tensors(network)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


@torch.no_grad()
def unpack(network: nn.Module, flat: Tensor) -> None:
    """Overwrites parameters and buffers with those that `packed` gave of a network of the same kind."""
    tensors = _tensors(network)
    for tensor, part in zip(tensors, flat.split([t.numel() * t.element_size() for t in tensors]), strict=True):
        # A copy begins at an address that suits every type.
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def network_of_rank(network: nn.Module, rank: int) -> Tensor:
    """What `packed` gives on one rank, on all ranks; each calls this with its own network of the same kind."""
    flat = packed(network)
    torch.distributed.broadcast(flat, src=rank)
    return flat


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that does not learn, in evaluation mode."""
    frozen = copy.deepcopy(network).requires_grad_(False).eval()
    for parameter in frozen.parameters():
        parameter.grad = None
    return frozen


def _tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
