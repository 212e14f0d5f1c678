"""Public implementations of MGD."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdlightning.losses import MGD, mgd_loss
from peers.base import Case, Peer, Shape, pair

SHAPES: tuple[Shape, Shape, Shape] = ((16, 16, 32, 32), (16, 32, 16, 16), (16, 64, 8, 8))
LAYERS = tuple(f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias"))


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student, teacher of the same shape, and the generator's parameters."""
    width = shape[1]
    parameters = []
    for _ in range(2):
        parameters.append(torch.randn((width, width, 3, 3), generator=generator) * (9 * width) ** -0.5)
        parameters.append(torch.randn(width, generator=generator) * 0.1)
    return *pair(shape, generator), *(tensor.requires_grad_() for tensor in parameters)


def _owned(make: Callable[[int], nn.Module], network: str) -> Callable[..., Tensor]:
    """A module's loss with the generator's parameters given from outside."""
    made: dict[int, nn.Module] = {}

    def loss(student: Tensor, teacher: Tensor, *parameters: Tensor) -> Tensor:
        width = student.shape[1]
        if width not in made:
            with torch.random.fork_rng(devices=[]):  # the next random numbers are the mask's
                made[width] = make(width)
        values = dict(zip((f"{network}.{name}" for name in LAYERS), parameters, strict=True))
        return functional_call(made[width], values, (student, teacher))

    return loss


def _ours(**options: Any) -> Callable[..., Tensor]:
    def make(width: int) -> nn.Module:
        loss = MGD(**options)
        loss.build([(1, width, 1, 1)], [(1, width, 1, 1)])
        return loss

    return _owned(make, "generator")


def _mgd_loss(module: ModuleType) -> Any:
    return _owned(lambda width: module.MGDLoss(width, width, "loss", alpha_mgd=1.0), "generation")


def _cls_kd(module: ModuleType) -> Any:
    return _owned(lambda width: module.MGDLoss("loss", True, width, width, alpha_mgd=1.0), "generation")


def _mirror(module: ModuleType) -> None:
    """Lets a file that drops the highest random numbers drop those that ours drops, the lowest."""
    names = {name: getattr(torch, name) for name in ("where", "zeros", "ones", "mul", "Tensor")}
    module.torch = SimpleNamespace(rand=lambda *sizes: 1 - torch.rand(*sizes), **names)  # type: ignore[attr-defined]


def _detection(module: ModuleType) -> Any:
    _mirror(module)
    return _owned(lambda width: module.FeatureLoss(width, width, "loss", alpha_mgd=1.0), "generation")


def _connector(module: ModuleType) -> Any:
    _mirror(module)
    return _owned(lambda width: _AndTeacher(module.MGDConnector(width, width)), "generation")


class _AndTeacher(nn.Module):
    """mmrazor's connector, with the loss that it has in another file: a sum of squares over the batch size."""

    def __init__(self, connector: Any) -> None:
        super().__init__()
        self.generation = connector.generation
        self.connect = connector.forward_train

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self.connect(student), teacher, reduction="sum") / len(teacher)


CASES = (
    Case(
        method="mgd",
        function="mgd_loss",
        paper="Yang et al. 2022",
        form="sum of squared differences over the batch size",
        shapes=SHAPES,
        inputs=pair,
        ours=mgd_loss,
        peers=(
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/mgd_loss.py",
                lambda module: module.MGDLoss(alpha_mgd=1.0),
                note="α = 1",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
    Case(
        method="mgd",
        function="MGD",
        paper="Yang et al. 2022",
        form="15 % of each sample's channels masked, two 3×3 convolutions",
        shapes=SHAPES,
        inputs=_inputs,
        ours=_ours(),
        peers=(
            Peer(
                "yzd-v/MGD",
                "2c9da0b28625eb948db57afc02c824452c3910fe",
                "cls/mmcls/distillation/losses/mgd.py",
                _mgd_loss,
                note="the authors' code, α = 1",
                stubs=("mmcv", "mmcv.utils"),
            ),
            Peer(
                "yzd-v/cls_KD",
                "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66",
                "mmcls/models/dis_losses/mgd.py",
                _cls_kd,
                note="the authors' code, α = 1",
                stubs=("mmcls", "mmcls.registry"),
            ),
        ),
    ),
    Case(
        method="mgd",
        function='MGD(mask_ratio=0.65, masks="positions")',
        paper="Yang et al. 2022",
        form="65 % of each sample's positions masked, two 3×3 convolutions",
        shapes=SHAPES,
        inputs=_inputs,
        ours=_ours(mask_ratio=0.65, masks="positions"),
        peers=(
            Peer(
                "yzd-v/MGD",
                "2c9da0b28625eb948db57afc02c824452c3910fe",
                "det/mmdet/distillation/losses/mgd.py",
                _detection,
                note="the authors' code, α = 1, random numbers mirrored: it drops the highest, ours the lowest",
                stubs=("mmcv", "mmcv.utils"),
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/architectures/connectors/mgd_connector.py",
                _connector,
                note="random numbers mirrored: it drops the highest, ours the lowest",
                stubs=(
                    "mmrazor",
                    "mmrazor.registry",
                    "_peer.open_mmlab_mmrazor.mmrazor.models.architectures.connectors.base_connector",
                ),
            ),
        ),
    ),
)
