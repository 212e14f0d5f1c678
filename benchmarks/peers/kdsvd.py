"""Public implementations of KDSVD."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor

from kdlightning.losses import kdsvd_loss
from peers.base import Case, Peer, Shape


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Two stages of the student and of the teacher; the second has twice the width and half the size.

    They are averages of few directions and noise, as features are, so that singular values lie apart.
    """
    batch, width, height, breadth = shape
    stages = []
    for sizes in ((width, height, breadth), (2 * width, height // 2, breadth // 2)):
        positions = sizes[1] * sizes[2]
        for _ in range(2):
            few = torch.randn((batch, sizes[0], 6), generator=generator) * torch.tensor([16.0, 8.0, 4.0, 3.0, 2.0, 1.5])
            low_rank = few @ torch.randn((batch, 6, positions), generator=generator)
            noise = torch.randn((batch, sizes[0], positions), generator=generator)
            stages.append((low_rank + noise).unflatten(2, sizes[1:]).contiguous())
    student = stages[0].requires_grad_(), stages[2].requires_grad_()
    return *student, stages[1], stages[3]


def _ours(first: Tensor, second: Tensor, first_teacher: Tensor, second_teacher: Tensor) -> Tensor:
    return kdsvd_loss([first, second], [first_teacher, second_teacher])


def _repdistiller(module: ModuleType) -> Any:
    loss = module.KDSVD(k=1)
    decompose = loss.svd

    def signed(maps: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = decompose(maps, count)
        return left, values, right * torch.where(right.sum(1, keepdim=True) < 0, -1.0, 1.0)

    loss.svd = signed
    return lambda first, second, *teacher: sum(loss([first, second], list(teacher)))


def _mdistiller(module: ModuleType) -> Any:
    return lambda first, second, *teacher: module.kdsvd_loss([first, second], list(teacher), 1)


CASES = (
    Case(
        method="kdsvd",
        function="kdsvd_loss",
        paper="Lee et al. 2018",
        form="sum over channels, mean over the batch; right singular vectors of positions by channels, k = 1",
        shapes=((16, 16, 16, 16), (16, 32, 8, 8), (32, 64, 16, 16)),
        inputs=_inputs,
        ours=_ours,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/KDSVD.py",
                _repdistiller,
                note="signs of the singular vectors, which it leaves to the library, set as ours",
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/KDSVD.py",
                _mdistiller,
                agrees=False,
                note="maps cut to C·H rows of W columns: singular vectors along the width of the image, not channels",
            ),
        ),
    ),
)
