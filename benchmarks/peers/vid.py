"""Public implementations of VID."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdlightning.losses import VID, vid_loss
from peers.base import Case, Peer, Shape, pair


def _means(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    predicted, teacher = pair(shape, generator)
    return predicted, teacher, torch.randn(shape[1], generator=generator).requires_grad_()


def _features(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student, a teacher of twice the width and half the size, the variances and the network's three weights."""
    batch, width, height, breadth = shape
    student, _ = pair(shape, generator)
    teacher = torch.randn((batch, 2 * width, height // 2, breadth // 2), generator=generator)
    log_scale = torch.randn(2 * width, generator=generator)
    weights = [torch.randn((2 * width, w, 1, 1), generator=generator) * w**-0.5 for w in (width, 2 * width, 2 * width)]
    return student, teacher, *(tensor.requires_grad_() for tensor in (log_scale, *weights))


def _owned(make: Callable[[Shape, Shape], nn.Module], scale: str, network: str) -> Callable[..., Tensor]:
    """A module's loss with the variances and weights given from outside."""
    made: dict[Any, nn.Module] = {}
    names = (scale, *(f"{network}.{layer}.weight" for layer in (0, 2, 4)))

    def loss(student: Tensor, teacher: Tensor, *parameters: Tensor) -> Tensor:
        key = student.shape
        if key not in made:
            made[key] = make(tuple(student.shape), tuple(teacher.shape))
        return functional_call(made[key], dict(zip(names, parameters, strict=True)), (student, teacher))

    return loss


def _ours(student: Shape, teacher: Shape) -> nn.Module:
    loss = VID()
    loss.build([student], [teacher])
    return loss


def _repdistiller(module: ModuleType) -> Any:
    return _owned(lambda own, other: module.VIDLoss(own[1], other[1], other[1]), "log_scale", "regressor")


def _repdistiller_function(module: ModuleType) -> Any:
    loss = module.VIDLoss(1, 1, 1)
    loss.regressor = nn.Identity()
    return lambda predicted, teacher, log_scale: functional_call(loss, {"log_scale": log_scale}, (predicted, teacher))


def _zoo_function(module: ModuleType) -> Any:
    loss = module.VID(1, 1, 1, 5.0, eps=1e-5)
    loss.regressor = nn.Identity()
    return lambda predicted, teacher, log_scale: functional_call(loss, {"alpha": log_scale}, (predicted, teacher))


def _mdistiller(module: ModuleType) -> Any:
    return lambda predicted, teacher, log_scale: module.vid_loss(nn.Identity(), log_scale, predicted, teacher)


def _torchdistill(module: ModuleType) -> Any:
    place = {"io": "output", "path": "map"}
    loss = module.VIDLoss({"pair": {"teacher": place, "student": place}})

    def function(predicted: Tensor, teacher: Tensor, log_scale: Tensor) -> Tensor:
        variance = (F.softplus(log_scale) + 1e-5).view(1, -1, 1, 1)
        return loss({"map": {"output": (predicted, variance)}}, {"map": {"output": teacher}})

    return function


CASES = (
    Case(
        method="vid",
        function="vid_loss",
        paper="Ahn et al. 2019",
        form="mean of ½·[(μ − F)²/σ² + log σ²]",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=_means,
        ours=vid_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/VID.py",
                _repdistiller_function,
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/VID.py",
                _mdistiller,
                note="the function; its trainer neither trains nor saves the variances",
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                note="given the variances, which it computes elsewhere",
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/vid.py",
                _zoo_function,
                note="with eps = 1e-5; its default is 1e-6",
            ),
        ),
    ),
    Case(
        method="vid",
        function="VID",
        paper="Ahn et al. 2019",
        form="pooling, three 1×1 convolutions, then vid_loss",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=_features,
        ours=_owned(_ours, "log_scale", "predictor"),
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/VID.py",
                _repdistiller,
            ),
        ),
    ),
)
