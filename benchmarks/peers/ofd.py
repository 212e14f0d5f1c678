"""Public implementations of the overhaul of feature distillation."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from kdlightning.losses import OFD, LossContext, ofd_loss
from peers.base import Case, Peer, Shape, pair

SHAPES: tuple[Shape, Shape, Shape] = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8))
NAMES = ("0.weight", "1.weight", "1.bias")


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student, teacher and margins below zero."""
    return *pair(shape, generator), -torch.rand(shape[1], generator=generator)


def _connected(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student, a teacher of twice the width, the connector's parameters, the teacher's BatchNorm."""
    width = 2 * shape[1]
    weight = torch.randn((width, shape[1], 1, 1), generator=generator) * width**-0.5
    own = [torch.randn(width, generator=generator).requires_grad_() for _ in range(2)]
    theirs = [torch.randn(width, generator=generator) for _ in range(2)]
    return *pair(shape, generator, wider=2), weight.requires_grad_(), *own, *theirs


def _norm(weight: Tensor, bias: Tensor) -> nn.Module:
    norm = nn.BatchNorm2d(len(weight), dtype=weight.dtype)
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return norm.requires_grad_(False)


def _with_connector(connector: Callable[[int, int], nn.Module], loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of `_connected`'s inputs; `loss` gets the connected student, the teacher and its BatchNorm."""
    made: dict[Any, nn.Module] = {}
    norms: dict[Any, nn.Module] = {}

    def function(student: Tensor, teacher: Tensor, *rest: Tensor) -> Tensor:
        *own, weight, bias = rest
        width = (len(weight), weight.dtype)
        if width not in made:
            made[width] = connector(student.shape[1], len(weight)).to(weight.dtype)
            norms[width] = _norm(weight, bias)
        return loss(functional_call(made[width], dict(zip(NAMES, own, strict=True)), (student,)), teacher, norms[width])

    return function


def _ours() -> Callable[..., Tensor]:
    losses: dict[Any, OFD] = {}

    def loss(student: Tensor, teacher: Tensor, norm: nn.Module) -> Tensor:
        key = (student.shape[1], student.dtype)
        if key not in losses:
            losses[key] = OFD()
            losses[key].bind(LossContext(norm, nn.Sequential(norm), ("0",), ("0",)))
            losses[key].build([tuple(student.shape)], [tuple(teacher.shape)])
        return losses[key](student, teacher)

    return _with_connector(lambda own, other: OFD().adapter((2, own, 1, 1), (2, other, 1, 1)), loss)


def _over(margin: Tensor) -> Tensor:
    return margin.view(1, -1, 1, 1)


def _authors(module: ModuleType) -> Any:
    loss = module.distillation_loss
    return lambda student, teacher, margin: loss(student, teacher, _over(margin)) / len(student)


def _authors_connected(module: ModuleType) -> Any:
    known: dict[Any, Tensor] = {}

    def loss(student: Tensor, teacher: Tensor, norm: Any) -> Tensor:
        key = (student.shape[1], student.dtype)
        if key not in known:
            known[key] = _over(module.get_margin_from_BN(norm)).to(student.dtype)
        return module.distillation_loss(student, teacher, known[key]) / len(student)

    return _with_connector(lambda own, other: module.build_feature_connector(other, own), loss)


def _mmrazor(module: ModuleType) -> Any:
    loss = module.OFDLoss(mul_factor=1.0)
    return lambda student, teacher, margin: loss(student, torch.max(teacher, _over(margin)))


AUTHORS = ("clovaai/overhaul-distillation", "76344a84a7ce23c894f41a2e05b866c9b73fd85a", "CIFAR-100/distiller.py")

CASES = (
    Case(
        method="ofd",
        function="ofd_loss",
        paper="Heo et al. 2019",
        form="sum over the batch size; without 1/1000 and weights of stages",
        shapes=SHAPES,
        inputs=_inputs,
        ours=ofd_loss,
        peers=(
            Peer(*AUTHORS, _authors, note="the authors' code, its sum divided by the batch size"),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/OFD.py",
                lambda module: lambda student, teacher, margin: module.feat_loss(student, teacher, _over(margin)),
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/ofd_loss.py",
                _mmrazor,
                note="with mul_factor=1; it has the margin ReLU in another file",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
    Case(
        method="ofd",
        function="OFD",
        paper="Heo et al. 2019",
        form="1×1 convolution and BatchNorm, margins of the teacher's BatchNorm",
        shapes=SHAPES,
        inputs=_connected,
        ours=_ours(),
        peers=(
            Peer(*AUTHORS, _authors_connected, note="the authors' connector and margins; margins are float32 there"),
        ),
    ),
)
