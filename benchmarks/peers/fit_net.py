"""Public implementations of FitNets' hints."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdlightning.losses import FitNet, fitnet_loss
from peers.base import Case, Peer, Shape, pair


def regressor_inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student, a teacher of twice the width and half the size, and the parameters of the regressor between them."""
    batch, width, height, breadth = shape
    student, _ = pair(shape, generator)
    teacher = torch.randn((batch, 2 * width, height // 2, breadth // 2), generator=generator).relu()
    weight = torch.randn((2 * width, width, 3, 3), generator=generator) * (9 * width) ** -0.5
    others = [torch.randn(2 * width, generator=generator) * 0.1 + start for start in (0.0, 1.0, 0.0)]
    return student, teacher, *(tensor.requires_grad_() for tensor in (weight, *others))


def _with_parameters(make: Callable[[Shape, Shape], nn.Module], names: tuple[str, ...]) -> Callable[..., Tensor]:
    """The mean squared error after a regressor that takes its parameters from outside."""
    made: dict[Any, nn.Module] = {}

    def loss(student: Tensor, teacher: Tensor, *parameters: Tensor) -> Tensor:
        key = (student.shape, student.dtype)
        if key not in made:
            made[key] = make(tuple(student.shape), tuple(teacher.shape)).to(student.dtype)
        regressed = functional_call(made[key], dict(zip(names, parameters, strict=True)), (student,))
        return F.mse_loss(regressed, teacher)

    return loss


def _conv_reg(module: ModuleType) -> Callable[..., Tensor]:
    return _with_parameters(module.ConvReg, ("conv.weight", "conv.bias", "bn.weight", "bn.bias"))


CASES = (
    Case(
        method="fit_net",
        function="fitnet_loss",
        paper="Romero et al. 2015",
        form="mean squared error",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=pair,
        ours=fitnet_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/FitNet.py",
                lambda module: module.HintLoss(),
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/fitnet.py",
                lambda module: module.Hint(),
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/l2_loss.py",
                lambda module: module.L2Loss(normalize=False, div_element=True),
                note="normalize=False, div_element=True; its defaults divide by the norms, and by B alone",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
    Case(
        method="fit_net",
        function="FitNet",
        paper="Romero et al. 2015",
        form="3×3 convolution of stride 2, BatchNorm and ReLU before the mean squared error",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=regressor_inputs,
        ours=_with_parameters(FitNet().adapter, ("0.weight", "0.bias", "1.weight", "1.bias")),
        peers=(
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/_common.py",
                _conv_reg,
            ),
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "models/util.py",
                _conv_reg,
            ),
        ),
    ),
)
