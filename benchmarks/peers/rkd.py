"""Public implementations of RKD."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from kdlightning.losses import rkd_loss
from peers.base import Case, Peer, pair


def _lenscloth(module: ModuleType) -> Any:
    distance, angle = module.RkdDistance(), module.RKdAngle()
    return lambda student, teacher: 25 * distance(student, teacher) + 50 * angle(student, teacher)


def _torchdistill(module: ModuleType) -> Any:
    loss = module.RKDLoss("features", "features", 25.0, 50.0, "mean")
    return lambda student, teacher: loss({"features": {"output": student}}, {"features": {"output": teacher}})


def _mmrazor(normalised: bool) -> Any:
    def make(module: ModuleType) -> Any:
        distance = module.DistanceWiseRKD(with_l2_norm=normalised)
        angle = module.AngleWiseRKD(with_l2_norm=normalised)

        def function(student: Tensor, teacher: Tensor) -> Tensor:
            value: Tensor = distance(student, teacher) + angle(student, teacher)
            return value

        return function

    return make


CASES = (
    Case(
        method="rkd",
        function="rkd_loss",
        paper="Park et al. 2019",
        form="distances and angles, smooth L1, 25 and 50",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=pair,
        ours=rkd_loss,
        peers=(
            Peer(
                "lenscloth/RKD",
                "0a6c3c0c190722d428322bf71703c0ae86c25242",
                "metric/loss.py",
                _lenscloth,
                note="the authors' code",
            ),
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/RKD.py",
                lambda module: module.RKDLoss(w_d=25, w_a=50),
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/RKD.py",
                lambda module: module.rkd_loss,
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
                "kd_losses/rkd.py",
                lambda module: module.RKD(25.0, 50.0),
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/relational_kd.py",
                _mmrazor(False),
                note="with with_l2_norm=False",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/relational_kd.py",
                _mmrazor(True),
                agrees=False,
                note="its default normalises the features first",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
)
