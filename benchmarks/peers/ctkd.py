"""Public implementations of CTKD."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Generator, Tensor
from torch.func import functional_call

from kdlightning.losses import CTKD
from peers.base import Case, Peer
from peers.kd import SHAPES

PROGRESS = 0.02
"""A moment at which the reversed gradient has not yet grown to its full size."""


def _inputs(shape: tuple[int, ...], generator: Generator) -> tuple[Tensor, ...]:
    student = torch.randn(shape, generator=generator).requires_grad_()
    teacher = 3 * torch.randn(shape, generator=generator)
    return student, teacher, torch.tensor(0.3, requires_grad=True)


def _ours(standardize: bool) -> Any:
    loss = CTKD(standardize=standardize)

    def function(student: Tensor, teacher: Tensor, theta: Tensor) -> Tensor:
        value: Tensor = functional_call(loss, {"theta": theta}, (student, teacher), {"progress": PROGRESS})
        return value

    return function


def _authors(name: str) -> Any:
    def make(module: ModuleType) -> Any:
        path = Path(str(module.__file__)).parents[1] / "distiller_zoo" / "KD.py"
        spec = importlib.util.spec_from_file_location("_peer_ctkd_divergence", path)
        assert spec is not None
        assert spec.loader is not None
        beside = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(beside)
        divergence, layer, reversal = getattr(beside, name)(), module.GradientReversal(), -CTKD().reversal(PROGRESS)

        def function(student: Tensor, teacher: Tensor, theta: Tensor) -> Tensor:
            temperature = 1 + 20 * torch.sigmoid(layer(theta, reversal))
            # The divergence sends the temperature to the GPU whether there is one or not.
            with mock.patch.object(Tensor, "cuda", lambda tensor: tensor):
                value: Tensor = divergence(student, teacher, temperature)
            return value

        return function

    return make


AUTHORS = Peer(
    "zhengli97/CTKD",
    "7d5252241259ae70d38a832371fed9697d15fc14",
    "models/temp_global.py",
    _authors("DistillKL"),
    note="the authors' code; with its `distiller_zoo/KD.py` and our schedule, which moves within an epoch",
)
FORK = "sunshangquan/logit-standardization-KD", "f6e5aa5172bad618e801163c3385322eea673754", "CTKD/models/temp_global.py"
CASES = (
    Case(
        method="ctkd",
        function="CTKD",
        paper="Li et al. 2023",
        form="one temperature for all samples, gradient reversed by a cosine schedule",
        shapes=SHAPES,
        inputs=_inputs,
        ours=_ours(False),
        peers=(AUTHORS, Peer(*FORK, _authors("DistillKL"), note="a copy of the authors' code")),
    ),
    Case(
        method="ctkd",
        function="CTKD(standardize=True)",
        paper="Li et al. 2023, Sun et al. 2024",
        form="standardised logits",
        shapes=SHAPES,
        inputs=_inputs,
        ours=_ours(True),
        peers=(Peer(*FORK, _authors("DistillKL_logit_stand"), note="the authors of standardisation"),),
    ),
)
