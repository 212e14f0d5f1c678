"""Public implementations of IRG."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor

from kdlightning.losses import irg_loss
from peers.base import Case, Peer, Shape


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Two maps, features and logits of both; the second map has half the size and twice the width."""
    batch, width, *size = shape

    def network(wider: int) -> list[Tensor]:
        first = (batch, width * wider, *size)
        second = (batch, 2 * width * wider, *(side // 2 for side in size))
        return [torch.randn(one, generator=generator) for one in (first, second, second[:2], (batch, 10))]

    return (*(tensor.requires_grad_() for tensor in network(1)), *network(2))


def _ours(*tensors: Tensor) -> Tensor:
    first, second, features, logits, other_first, other_second, other_features, other_logits = tensors
    maps = (first, second), (other_first, other_second)
    return irg_loss(*maps, features, other_features, logits, other_logits)


def _zoo(module: ModuleType) -> Any:
    loss = module.IRG(0.1, 5.0, 5.0)
    return lambda *tensors: loss(tensors[:4], tensors[4:])


CASES = (
    Case(
        method="irg",
        function="irg_loss",
        paper="Liu et al. 2019",
        form="squared distances over the largest, one to one, weights 0.1, 5 and 5",
        shapes=((8, 16, 8, 8), (32, 32, 16, 16), (64, 32, 16, 16)),
        inputs=_inputs,
        ours=_ours,
        peers=(
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/irg.py",
                _zoo,
                note="the authors' code is for Caffe",
            ),
        ),
    ),
)
