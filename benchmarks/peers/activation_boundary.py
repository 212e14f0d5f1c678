"""Public implementations of activation boundaries."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdlightning.losses import ab_loss
from peers.base import Case, Peer, pair


def _repdistiller(module: ModuleType) -> Any:
    loss = module.ABLoss(1)
    return lambda student, teacher: loss([student], [teacher])[0] * (1000 / 3)


def _mmrazor(module: ModuleType) -> Any:
    loss = module.ABLoss()
    return lambda student, teacher: loss(student, teacher) * (1000 / 3)


def _torchdistill(module: ModuleType) -> Any:
    place = {"io": "output", "path": "map"}
    loss = module.AltActTransferLoss({"pair": {"teacher": place, "student": place}}, 1.0, "mean")
    return lambda student, teacher: loss({"map": {"output": student}}, {"map": {"output": teacher}})


CASES = (
    Case(
        method="activation_boundary",
        function="ab_loss",
        paper="Heo et al. 2019",
        form="sum of squared hinges over the batch size, margin 1",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=pair,
        ours=ab_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/AB.py",
                _repdistiller,
                note="without its factor 3/1000",
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/ab_loss.py",
                _mmrazor,
                note="without its factor 3/1000",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
)
