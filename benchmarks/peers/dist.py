"""Public implementations of DIST."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from kdlightning.losses import dist_loss
from peers.base import Case, Peer
from peers.kd import SHAPES, logits, torchdistill

TEMPERATURE = 4.0


def _authors(module: ModuleType) -> Any:
    return module.DIST(tau=TEMPERATURE)


def _segmentation(module: ModuleType) -> Any:
    loss = module.DIST()
    return lambda student, teacher: loss(student / TEMPERATURE, teacher / TEMPERATURE) * TEMPERATURE**2


def _mmrazor(module: ModuleType) -> Any:
    return module.DISTLoss(tau=TEMPERATURE)


def _torchdistill(module: ModuleType) -> Any:
    return torchdistill(module, "DISTLoss", tau=TEMPERATURE)


CASES = (
    Case(
        method="dist",
        function="dist_loss",
        paper="Huang et al. 2022",
        form="1e-8 added to the denominator, T²",
        shapes=SHAPES,
        inputs=logits,
        ours=partial(dist_loss, temperature=TEMPERATURE),
        peers=(
            Peer(
                "hunto/image_classification_sota",
                "6f7a70a1dd57fd88413d83909d3d53243068f701",
                "lib/models/losses/dist_kd.py",
                _authors,
                note="the authors' code",
            ),
            Peer(
                "hunto/DIST_KD",
                "2418f18b1fedd7c2646a7b1b9a27d5c674c2170b",
                "segmentation/losses/dist_kd.py",
                _segmentation,
                note="the authors' code for segmentation, which has no temperature; divided and multiplied by it here",
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/dist_loss.py",
                _mmrazor,
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                agrees=False,
                note="bounds the denominator by 1e-8 instead of adding it, as the authors do",
            ),
        ),
    ),
)
