"""Public implementations of distillation by Pearson correlation."""

from __future__ import annotations

from torch import Generator, Tensor

from kdlightning.losses import pearson_kd_loss
from peers.base import Case, Peer, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    student, teacher = pair(shape, generator)
    return (student.detach() * 3 + 1).requires_grad_(), teacher * 5 - 2


CASES = (
    Case(
        method="pearson_kd",
        function="pearson_kd_loss",
        paper="Cao et al. 2022",
        form="½ mean squared difference of channels standardised over batch and positions",
        shapes=((16, 64, 8, 8), (16, 64, 32, 32), (4, 256, 64, 64)),
        inputs=_inputs,
        ours=pearson_kd_loss,
        peers=(
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/pkd_loss.py",
                lambda module: module.PKDLoss(),
                note="the authors' code",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
        ),
    ),
)
