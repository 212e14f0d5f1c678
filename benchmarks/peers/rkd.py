"""Public implementations of RKD."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdlightning.losses import rkd_loss
from peers.base import Case, Peer, pair


def _repdistiller(module: ModuleType) -> Any:
    loss = module.RKDLoss(w_d=25, w_a=50)
    return lambda student, teacher: loss(student, teacher)


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
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/RKD.py",
                _repdistiller,
            ),
        ),
    ),
)
