"""Public implementations of correlation congruence."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Generator, Tensor
from torch.nn import functional as F

from kdlightning.losses import cc_loss
from peers.base import Case, Peer, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator, wider=2)


def _torchdistill(module: ModuleType) -> Any:
    """On unit vectors, squared and times B², which makes its norm our mean of squares."""
    loss = module.CCKDLoss("linear", "linear", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")

    def function(student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = ({"linear": {"output": F.normalize(rows)}} for rows in (student, teacher))
        return loss(ours, theirs).square() * len(student) ** 2

    return function


def _repdistiller(module: ModuleType) -> Any:
    loss = module.Correlation()
    return lambda student, teacher: loss(student, teacher[:, : student.shape[1]])


CASES = (
    Case(
        method="cc",
        function="cc_loss",
        paper="Peng et al. 2019",
        form="Taylor series of the Gaussian kernel, mean square",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=_inputs,
        ours=cc_loss,
        peers=(
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/cc.py",
                lambda module: module.CC(0.4, 2),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                note="its norm squared, times B², on unit vectors; by itself it takes linear layers' output as it is",
            ),
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/CC.py",
                _repdistiller,
                agrees=False,
                note="the authors' code: products of |xˢ − xᵗ| of neighbouring rows; the paper has kernels",
            ),
        ),
    ),
)
