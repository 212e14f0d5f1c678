"""Public implementations of channel-wise distillation."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import Generator, Tensor

from kdlightning.losses import cwd_loss
from peers.base import Case, Peer, Shape, pair

TEMPERATURE = 4.0


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    student, teacher = pair(shape, generator)
    return (student.detach() * 3).requires_grad_(), teacher * 3


def _mmrazor(module: ModuleType) -> Any:
    return module.ChannelWiseDivergence(tau=TEMPERATURE)


CASES = (
    Case(
        method="cwd",
        function="cwd_loss",
        paper="Shu et al. 2021",
        form="T²/(B·C) · Σ KL of softmaxes over the positions, T = 4",
        shapes=((16, 64, 16, 16), (16, 19, 64, 64), (16, 19, 64, 128)),
        inputs=_inputs,
        ours=partial(cwd_loss, temperature=TEMPERATURE),
        peers=(
            Peer(
                "irfanICMLL/TorchDistiller",
                "78bac7cbe50634e0b880ef37eb8cd7e2560806e4",
                "SemSeg-distill/utils/criterion.py",
                lambda module: module.CriterionCWD("channel", "kl", TEMPERATURE),
                note="the authors' code",
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/cwd.py",
                _mmrazor,
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
)
