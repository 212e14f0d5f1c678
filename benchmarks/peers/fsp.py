"""Public implementations of FSP."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor

from kdlightning.losses import fsp_loss
from peers.base import Case, Peer, Shape


def _inputs(shape: Shape, generator: Generator) -> tuple[list[Tensor], ...]:
    """Three stages, each of half the size and twice the width of the one before, of both networks."""
    batch, width, *size = shape
    shapes = [(batch, width * 2**stage, *(side // 2**stage for side in size)) for stage in range(3)]
    student = [torch.randn(one, generator=generator).requires_grad_() for one in shapes]
    return (*student, *(torch.randn(one, generator=generator) for one in shapes))  # type: ignore[return-value]


def _ours(*maps: Tensor) -> Tensor:
    return fsp_loss(maps[:3], maps[3:])


def _repdistiller(module: ModuleType) -> Any:
    def function(*maps: Tensor) -> Tensor:
        shapes = [one.shape for one in maps]
        return sum(module.FSP(shapes[:3], shapes[3:])(maps[:3], maps[3:]), torch.zeros(()))

    return function


def _zoo(module: ModuleType) -> Any:
    loss = module.FSP()
    return lambda a, b, c, d, e, f: loss(a, b, d, e) + loss(b, c, e, f)


def _torchdistill(module: ModuleType) -> Any:
    def place(name: str) -> dict[str, str]:
        return {"io": "output", "path": name}

    pairs = {
        f"pair{first}": {
            "teacher_first": place(str(first)),
            "teacher_second": place(str(first + 1)),
            "student_first": place(str(first)),
            "student_second": place(str(first + 1)),
        }
        for first in range(2)
    }
    loss = module.FSPLoss(pairs)

    def function(*maps: Tensor) -> Tensor:
        ours, theirs = ({str(n): {"output": one} for n, one in enumerate(part)} for part in (maps[:3], maps[3:]))
        return loss(ours, theirs)

    return function


CASES = (
    Case(
        method="fsp",
        function="fsp_loss",
        paper="Yim et al. 2017",
        form="average pooling, mean squares, summed over the pairs of stages",
        shapes=((8, 8, 8, 8), (32, 16, 16, 16), (64, 16, 32, 32)),
        inputs=_inputs,
        ours=_ours,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/FSP.py",
                _repdistiller,
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/fsp.py",
                _zoo,
                note="summed over the pairs of stages; its script takes their mean",
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                agrees=False,
                note="max pooling, as in the paper, and norms of columns instead of squares",
            ),
        ),
    ),
)
