"""Public implementations of CRD."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from kdlightning.losses import CRD, LossContext
from peers.base import Case, Shape, pair


class _Numbered:
    def __init__(self, count: int) -> None:
        self.index = torch.arange(count)


def _ours(student: Tensor, teacher: Tensor) -> Tensor:
    loss = CRD(negatives=4 * len(student)).to(student.dtype)
    loss.bind(LossContext(nn.Identity(), nn.Identity(), samples=8 * len(student)))
    loss.build([tuple(student.shape)], [tuple(teacher.shape)])
    return loss.to(student.dtype)(student, teacher, batch=_Numbered(len(student)))


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator)


CASES = (
    Case(
        method="crd",
        function="CRD",
        paper="Tian et al. 2020",
        form="noise contrast with two banks, both directions",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=_inputs,
        ours=_ours,
        none="the authors' memory is made on a CUDA device and is handed its negatives; not compared yet",
    ),
)
