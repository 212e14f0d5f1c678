"""Public implementations of DKD, plain and with standardised logits."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor

from kdlightning.losses import dkd_loss
from peers.base import Case, Peer, Shape
from peers.kd import SHAPES, logits

OPTIONS = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}


def labelled(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and hard labels."""
    return *logits(shape, generator), torch.randint(shape[1], shape[:1], generator=generator)


def _mdistiller(module: ModuleType) -> Any:
    return partial(module.dkd_loss, **OPTIONS)


def _ctkd(module: ModuleType) -> Any:
    return partial(module.DKDloss(), **OPTIONS)


def _mmrazor(module: ModuleType) -> Any:
    loss = module.DKDLoss(tau=4.0, alpha=1.0, beta=8.0, reduction="mean")
    return lambda student, teacher, target: loss(student, teacher, target) / len(student)


def _cls_kd(module: ModuleType) -> Any:
    return module.DKDLoss(None, None, temp=4.0, alpha=1.0, beta=8.0)


def _standardized(module: ModuleType) -> Any:
    return partial(module.dkd_loss, **OPTIONS, logit_stand=True)


CASES = (
    Case(
        method="dkd",
        function="dkd_loss",
        paper="Zhao et al. 2022",
        form="α·TCKD + β·NCKD from log-sum-exps, mean over the batch",
        shapes=SHAPES,
        inputs=labelled,
        ours=partial(dkd_loss, **OPTIONS),
        peers=(
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/DKD.py",
                _mdistiller,
                note="infinite, with NaN gradients, once a gap of logits exceeds about 104·T in float32",
            ),
            Peer(
                "zhengli97/CTKD",
                "7d5252241259ae70d38a832371fed9697d15fc14",
                "distiller_zoo/DKD.py",
                _ctkd,
                note="infinite for large gaps, as mdistiller's",
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/decoupled_kd.py",
                _mmrazor,
                note='a sum over the batch even with reduction="mean"; divided by the batch size here',
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "yzd-v/cls_KD",
                "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66",
                "mmcls/models/dis_losses/dkd.py",
                _cls_kd,
                note="infinite for large gaps, as mdistiller's",
                stubs=("mmcls", "mmcls.registry"),
            ),
        ),
    ),
    Case(
        method="dkd",
        function="dkd_loss(standardize=True)",
        paper="Sun et al. 2024",
        form="DKD of standardised logits",
        shapes=SHAPES,
        inputs=labelled,
        ours=partial(dkd_loss, **OPTIONS, standardize=True),
        peers=(
            Peer(
                "sunshangquan/logit-standardization-KD",
                "f6e5aa5172bad618e801163c3385322eea673754",
                "mdistiller/distillers/DKD.py",
                _standardized,
            ),
        ),
    ),
)
