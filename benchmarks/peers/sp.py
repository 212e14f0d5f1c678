"""Public implementations of SP."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Generator, Tensor

from kdlightning.losses import sp_loss
from peers.base import Case, Peer, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator, wider=2)


def _torchdistill(module: ModuleType) -> Any:
    loss = module.SPKDLoss("map", "map", "batchmean")
    return lambda student, teacher: loss({"map": {"output": student}}, {"map": {"output": teacher}})


CASES = (
    Case(
        method="sp",
        function="sp_loss",
        paper="Tung and Mori 2019",
        form="rows of inner products over their L2 norm, squares over B²",
        shapes=((16, 16, 4, 4), (64, 64, 8, 8), (64, 64, 16, 16)),
        inputs=_inputs,
        ours=sp_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/SP.py",
                lambda module: lambda student, teacher: module.Similarity().similarity_loss(student, teacher)[0],
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/SP.py",
                lambda module: lambda student, teacher: module.similarity_loss(student, teacher)[0],
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/sp.py",
                lambda module: module.SP(),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                agrees=False,
                note="rows over their L1 norm; the paper has the L2 norm",
            ),
        ),
    ),
)
