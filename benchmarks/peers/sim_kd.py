"""Public implementations of SimKD."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from kdlightning.losses import simkd_loss
from kdlightning.losses.spatial import pool_larger
from kdlightning.models.projected import projector
from peers.base import Case, Peer, Shape, pair


def _larger_teacher(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """The projected map and a teacher's map of twice the size."""
    student, _ = pair(shape, generator)
    return student, torch.randn((*shape[:2], 2 * shape[2], 2 * shape[3]), generator=generator)


def _wider_teacher(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """The student's map before its projector, and a teacher's of twice the width."""
    return pair(shape, generator, wider=2)


def _projected(make: Callable[[int, int], nn.Module], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss with a projector of the same parameters in every implementation."""
    made: dict[Shape, nn.Module] = {}

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        key = tuple(student.shape)
        if key not in made:
            made[key] = make(student.shape[1], teacher.shape[1])
            generator = torch.Generator().manual_seed(0)
            for parameter in made[key].parameters():
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        return run(made[key].to(student.dtype), student, teacher)

    return loss


def _ours(network: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = pool_larger(student, teacher)
    return simkd_loss(network(student), teacher)


def _authors(network: Any, student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs, _ = network(student, teacher, nn.Identity())
    return F.mse_loss(ours, theirs)


def _without_projector(module: ModuleType) -> Any:
    network = module.SimKD(s_n=2, t_n=2)
    network.transfer = nn.Identity()
    return lambda student, teacher: _authors(network, student, teacher)


def _with_projector(module: ModuleType) -> Any:
    return _projected(lambda own, other: module.SimKD(s_n=own, t_n=other), _authors)


AUTHORS = ("DefangChen/SimKD", "2b389c31ed7779aea31e7aaf0bb0f2d8b6ac2f01", "models/util.py")

CASES = (
    Case(
        method="sim_kd",
        function="simkd_loss",
        paper="Chen et al. 2022",
        form="the larger map pooled, mean square",
        shapes=((16, 64, 4, 4), (64, 128, 4, 4), (64, 256, 8, 8)),
        inputs=_larger_teacher,
        ours=simkd_loss,
        peers=(Peer(*AUTHORS, _without_projector, note="which also pools the student's map for its prediction"),),
    ),
    Case(
        method="sim_kd",
        function="ProjectedStudent",
        paper="Chen et al. 2022",
        form="the projector of factor 2, then simkd_loss",
        shapes=((16, 32, 8, 8), (64, 64, 8, 8), (64, 128, 8, 8)),
        inputs=_wider_teacher,
        ours=_projected(lambda own, other: projector(own, other, 2), _ours),
        peers=(Peer(*AUTHORS, _with_projector, note="which also pools the student's map for its prediction"),),
    ),
)
