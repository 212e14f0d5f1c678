"""Public implementations of SRRL."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from kdlightning.losses import SRRL, LossContext, srrl_loss
from peers.base import Case, Peer, Shape, pair

CLASSES = 100


def _answers(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Two maps of one width, and two logits."""
    student, teacher = pair(shape, generator)
    logits, target = torch.randn((2, shape[0], CLASSES), generator=generator)
    return student, teacher, logits.requires_grad_(), target


class _Networks(nn.Module):
    """A connector and the teacher's classifier, with the same parameters in every implementation.

    Args:
        connector: one 1×1 convolution or linear layer without bias, and BatchNorm, in this order.
        width: the teacher's.
    """

    def __init__(self, connector: nn.Module, width: int) -> None:
        super().__init__()
        self.connector, self.head = connector, nn.Linear(width, CLASSES)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        self.head.requires_grad_(False)


def _cached(make: Callable[[Shape, Shape], _Networks], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    made: dict[Shape, _Networks] = {}

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        key = tuple(student.shape)
        if key not in made:
            made[key] = make(key, tuple(teacher.shape))
        return run(made[key].to(student.dtype), student, teacher)

    return loss


def _ours(alpha: float, beta: float) -> Callable[..., Tensor]:
    loss = SRRL(alpha=alpha, beta=beta)

    def run(networks: _Networks, student: Tensor, teacher: Tensor) -> Tensor:
        loss.bind(LossContext(student=networks, teacher=networks.head))
        return loss(networks.connector(student), teacher)

    return _cached(lambda own, other: _Networks(loss.adapter(own, other), other[1]), run)


def _cls_kd_function(module: ModuleType) -> Any:
    return module.SRRLLoss("srrl", True, 1, 1)


def _cls_kd(module: ModuleType) -> Any:
    def run(networks: _Networks, student: Tensor, teacher: Tensor) -> Tensor:
        connected = networks.connector(student)
        logits = networks.head(connected.mean((2, 3))), networks.head(teacher.mean((2, 3)))
        return module.SRRLLoss("srrl", True, 1, 1)(connected, teacher, *logits)

    def make(own: Shape, other: Shape) -> _Networks:
        return _Networks(module.SRRLLoss("srrl", True, own[1], other[1]).Connectors, other[1])

    return _cached(make, run)


def _simkd(module: ModuleType) -> Any:
    def run(networks: _Networks, student: Tensor, teacher: Tensor) -> Tensor:
        connected, logits = networks.connector(student, networks.head)
        return F.mse_loss(connected, teacher) + F.mse_loss(logits, networks.head(teacher))

    return _cached(lambda own, other: _Networks(module.SRRL(s_n=own[1], t_n=other[1]), other[1]), run)


CLS_KD = ("yzd-v/cls_KD", "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66", "mmcls/models/dis_losses/srrl.py")
STUBS = ("mmcls", "mmcls.registry")

CASES = (
    Case(
        method="srrl",
        function="srrl_loss",
        paper="Yang et al. 2021",
        form="mean squares of pooled features and of logits, 1 and 5",
        shapes=((16, 32, 7, 7), (64, 128, 8, 8), (64, 512, 7, 7)),
        inputs=_answers,
        ours=srrl_loss,
        peers=(Peer(*CLS_KD, _cls_kd_function, stubs=STUBS),),
    ),
    Case(
        method="srrl",
        function="SRRL",
        paper="Yang et al. 2021",
        form="connector of maps, the teacher's classifier, 1 and 5",
        shapes=((16, 32, 7, 7), (64, 64, 8, 8), (64, 256, 7, 7)),
        inputs=lambda shape, generator: pair(shape, generator, wider=2),
        ours=_ours(1.0, 5.0),
        peers=(Peer(*CLS_KD, _cls_kd, stubs=STUBS),),
    ),
    Case(
        method="srrl",
        function="SRRL",
        paper="Yang et al. 2021",
        form="connector of vectors, the teacher's classifier, 1 and 1",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=lambda shape, generator: pair(shape, generator, wider=2),
        ours=_ours(1.0, 1.0),
        peers=(
            Peer(
                "DefangChen/SimKD",
                "2b389c31ed7779aea31e7aaf0bb0f2d8b6ac2f01",
                "models/util.py",
                _simkd,
                note="with both weights 1, as its training loop has them",
            ),
        ),
    ),
)
