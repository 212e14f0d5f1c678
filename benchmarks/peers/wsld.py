"""Public implementations of WSLD."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from kdlightning.losses import wsld_loss
from peers.base import Case, Peer
from peers.dkd import labelled
from peers.kd import SHAPES


def _mmrazor(module: ModuleType) -> Any:
    return lambda student, teacher, target: module.WSLD(tau=2.0, num_classes=student.shape[1])(student, teacher, target)


def _cls_kd(module: ModuleType) -> Any:
    def loss(student: Any, teacher: Any, target: Any) -> Any:
        # It makes its lower bound of 0 on the GPU, wherever the logits are.
        with _NoGPU():
            return module.WSLDLoss(None, None, temp=2.0, alpha=1.0, num_classes=student.shape[1])(
                student, teacher, target
            )

    return loss


class _NoGPU:
    def __enter__(self) -> None:
        self.before = torch.Tensor.cuda
        torch.Tensor.cuda = lambda tensor, *args, **options: tensor

    def __exit__(self, *error: Any) -> None:
        torch.Tensor.cuda = self.before


CASES = (
    Case(
        method="wsld",
        function="wsld_loss",
        paper="Zhou et al. 2021",
        form="cross-entropy with T², weights at T = 1",
        shapes=SHAPES,
        inputs=labelled,
        ours=wsld_loss,
        peers=(
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/weighted_soft_label_distillation.py",
                _mmrazor,
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "yzd-v/cls_KD",
                "1e5d48f36957ee460d39d7ebc592c6cc7f8f3d66",
                "mmcls/models/dis_losses/wsld.py",
                _cls_kd,
                stubs=("mmcls", "mmcls.registry"),
            ),
        ),
    ),
)
