"""Public implementations of multi-label distillation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdlightning.losses import multilabel_kd_loss
from peers.base import Case, Peer
from peers.kd import logits


def _authors(module: ModuleType) -> Any:
    return module.MLD()


CASES = (
    Case(
        method="multi_label_kd",
        function="multilabel_kd_loss",
        paper="Yang et al. 2023",
        form="KL of Bernoullis from log-sigmoids, summed over labels",
        shapes=((64, 20), (64, 80), (256, 1000)),
        inputs=logits,
        ours=multilabel_kd_loss,
        peers=(
            Peer(
                "penghui-yang/L2D",
                "ea7fa5581de3cd0dba2f4d5ba3e3aaed78837a58",
                "criterion/distiller_zoo/logits_based/mld.py",
                _authors,
                note="the authors' code; clamps probabilities to 1e-8, beyond which its gradient is 0",
            ),
        ),
    ),
)
