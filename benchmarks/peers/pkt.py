"""Public implementations of PKT."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Generator, Tensor

from kdlightning.losses import pkt_loss
from peers.base import Case, Peer, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator, wider=2)


def _torchdistill(module: ModuleType) -> Any:
    loss = module.PKTLoss("features", "output", "features", "output")
    return lambda student, teacher: loss({"features": {"output": student}}, {"features": {"output": teacher}})


CASES = (
    Case(
        method="pkt",
        function="pkt_loss",
        paper="Passalis and Tefas 2018",
        form="cosine kernel, mean over all B² entries, ε = 1e-7",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=_inputs,
        ours=pkt_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/PKT.py",
                lambda module: module.PKT(),
                note="the authors' code",
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/PKT.py",
                lambda module: module.pkt_loss,
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/pkt.py",
                lambda module: lambda student, teacher: module.PKTCosSim()(student, teacher, eps=1e-7),
                note="with eps = 1e-7; its default is 1e-6",
            ),
        ),
    ),
)
