"""Public implementations of NST."""

from __future__ import annotations

from kdlightning.losses import nst_loss
from peers.base import Case, Peer, pair

CASES = (
    Case(
        method="nst",
        function="nst_loss",
        paper="Huang and Wang 2017",
        form="squared kernel (a·b)², means over pairs of channels and the batch",
        shapes=((16, 16, 32, 32), (16, 32, 16, 16), (16, 64, 8, 8)),
        inputs=lambda shape, generator: pair(shape, generator, wider=2),
        ours=nst_loss,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/NST.py",
                lambda module: module.NSTLoss().nst_loss,
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/NST.py",
                lambda module: module.single_stage_nst_loss,
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/nst.py",
                lambda module: module.NST(),
            ),
        ),
    ),
)
