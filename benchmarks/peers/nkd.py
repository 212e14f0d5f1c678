"""Public implementations of NKD."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from kdlightning.losses import nkd_loss
from peers.base import Case, Peer
from peers.dkd import labelled
from peers.kd import SHAPES


def _authors(module: ModuleType) -> Any:
    return module.NKDLoss(None, None, temp=3.0, gamma=3.5)


CASES = (
    Case(
        method="nkd",
        function="nkd_loss",
        paper="Yang et al. 2023",
        form="temperature in the other classes' part alone, γ·T²",
        shapes=SHAPES,
        inputs=labelled,
        ours=partial(nkd_loss, gamma=3.5, temperature=3.0),
        peers=(
            Peer(
                "yzd-v/cls_KD",
                "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66",
                "mmcls/models/dis_losses/nkd.py",
                _authors,
                note="the authors' code",
                stubs=("mmcls", "mmcls.registry"),
            ),
        ),
    ),
)
