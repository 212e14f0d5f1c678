"""Public implementations of CAT-KD."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kdlightning.losses import CATKD, LossContext, cat_kd_loss
from peers.base import Case, Peer, Shape, pair

CLASSES = 100


def _last_maps(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Two last maps, the teacher's twice as wide, and the weights of both classifiers."""
    student, teacher = pair(shape, generator, wider=2)
    heads = [torch.randn((CLASSES, maps.shape[1]), generator=generator) / maps.shape[1] for maps in (student, teacher)]
    return student, teacher, heads[0].requires_grad_(), heads[1]


def _ours(student: Tensor, teacher: Tensor, own: Tensor, other: Tensor) -> Tensor:
    heads = [nn.Linear(weight.shape[1], CLASSES, bias=False, device="meta") for weight in (own, other)]
    for head, weight in zip(heads, (own, other), strict=True):
        head.__dict__["weight"] = weight  # the tensor itself, of which gradients are asked
        del head._parameters["weight"]
    loss = CATKD()
    loss.bind(LossContext(student=heads[0], teacher=heads[1]))
    return loss(student, teacher)


def _official(normalize: bool) -> Callable[[ModuleType], Any]:
    return lambda module: lambda student, teacher: module.CAT_loss(student, teacher, 2, normalize)


def _official_with_heads(module: ModuleType) -> Any:
    def loss(student: Tensor, teacher: Tensor, own: Tensor, other: Tensor) -> Tensor:
        maps = (nn.functional.conv2d(f, w[:, :, None, None]) for f, w in ((student, own), (teacher, other)))
        return module.CAT_loss(*maps, 2, True)

    return loss


AUTHORS = ("GzyAftermath/CAT-KD", "4467073ca31b9929e7c45f5a6761e5e1b7c9442f", "mdistiller/distillers/CAT_KD.py")
SHAPES = ((16, CLASSES, 8, 8), (64, CLASSES, 8, 8), (64, 1000, 7, 7))

CASES = (
    Case(
        method="catkd",
        function="cat_kd_loss",
        paper="Guo et al. 2023",
        form="maps pooled to 2×2 and normalised, mean square",
        shapes=SHAPES,
        inputs=pair,
        ours=cat_kd_loss,
        peers=(Peer(*AUTHORS, _official(True)),),
    ),
    Case(
        method="catkd",
        function="cat_kd_loss",
        paper="Guo et al. 2023",
        form="maps pooled to 2×2, without normalisation",
        shapes=SHAPES,
        inputs=pair,
        ours=lambda student, teacher: cat_kd_loss(student, teacher, normalize=False),
        peers=(Peer(*AUTHORS, _official(False), note="as its configurations of one family have it"),),
    ),
    Case(
        method="catkd",
        function="CATKD",
        paper="Guo et al. 2023",
        form="each network's classifier on its last map, then cat_kd_loss",
        shapes=((16, 64, 8, 8), (64, 128, 8, 8), (64, 256, 7, 7)),
        inputs=_last_maps,
        ours=_ours,
        peers=(Peer(*AUTHORS, _official_with_heads, note="the 1×1 convolution that its networks end in"),),
    ),
)
