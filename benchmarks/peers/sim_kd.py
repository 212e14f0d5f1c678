"""Public implementations of SimKD."""

from __future__ import annotations

from torch import Generator, Tensor

from kdlightning.losses import simkd_loss
from peers.base import Case, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator)


CASES = (
    Case(
        method="sim_kd",
        function="simkd_loss",
        paper="Chen et al. 2022",
        form="mean squared error of projected maps",
        shapes=((4, 8, 4, 4), (16, 64, 8, 8), (64, 256, 8, 8)),
        inputs=_inputs,
        ours=simkd_loss,
        none="the authors' loss is torch's own mean squared error inside their training loop",
    ),
)
