"""Public implementations of CAT-KD."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdlightning.losses import cat_kd_loss
from peers.base import Case, Peer, pair


def _authors(module: ModuleType) -> Any:
    return lambda student, teacher: module.CAT_loss(student, teacher, 2, True)


CASES = (
    Case(
        method="catkd",
        function="cat_kd_loss",
        paper="Guo et al. 2023",
        form="activation maps pooled to 2 × 2, normalised, mean square",
        shapes=((8, 10, 8, 8), (64, 100, 8, 8), (64, 200, 16, 16)),
        inputs=pair,
        ours=cat_kd_loss,
        peers=(
            Peer(
                "GzyAftermath/CAT-KD",
                "4467073ca31b9929e7c45f5a6761e5e1b7c9442f",
                "mdistiller/distillers/CAT_KD.py",
                _authors,
                stubs=("_base",),
            ),
        ),
    ),
)
