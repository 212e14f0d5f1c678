"""Public implementations of ReviewKD."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kdlightning.losses import ReviewKD, hcl_loss
from peers.base import Case, Peer, Shape, pair


def _levels(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Three of the student's maps and its pooled vector, then the teacher's, of half the widths."""
    batch, width, side, _ = shape
    shapes = [(batch, width * 2**level, side // 2**level, side // 2**level) for level in range(3)]
    shapes.append((batch, shapes[-1][1], 1, 1))
    ours = [torch.randn(level, generator=generator).requires_grad_() for level in shapes]
    return *ours, *(torch.randn((batch, level[1] // 2, *level[2:]), generator=generator) for level in shapes)


def _networks(make: Callable[..., nn.Module], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of student's and teacher's levels with networks that depend on the shapes alone."""
    made: dict[Any, nn.Module] = {}

    def loss(*levels: Tensor) -> Tensor:
        ours, theirs = list(levels[: len(levels) // 2]), list(levels[len(levels) // 2 :])
        key = tuple(level.shape for level in levels)
        if key not in made:
            made[key] = _seeded(make(ours, theirs))
        return run(made[key].to(ours[0].dtype), ours, theirs)

    return loss


def _seeded(network: nn.Module) -> nn.Module:
    """Parameters that depend on their order alone: both implementations have the same ones in the same order."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network


def _ours(ours: list[Tensor], theirs: list[Tensor]) -> nn.Module:
    loss = ReviewKD()
    loss.build([tuple(level.shape) for level in ours], [tuple(level.shape) for level in theirs])
    return loss


def _fusions(module: ModuleType) -> Callable[..., nn.Module]:
    def make(ours: list[Tensor], theirs: list[Tensor]) -> nn.Module:
        middle = min(512, ours[-1].shape[1])
        widths = [(own.shape[1], other.shape[1]) for own, other in zip(ours, theirs, strict=True)]
        last = len(widths) - 1
        return nn.ModuleList(module.ABF(own, middle, other, level < last) for level, (own, other) in enumerate(widths))

    return make


def _official(module: ModuleType) -> Any:
    def run(fusions: Any, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        results: list[Tensor] = []
        deeper = None
        for fusion, own, other in reversed(list(zip(fusions, ours, theirs, strict=True))):
            result, deeper = fusion(own, deeper, own.shape[-1], other.shape[-1])
            results.insert(0, result)
        return getattr(module, "hcl_loss", getattr(module, "hcl", None))(results, theirs)

    return _networks(_fusions(module), run)


def _torchdistill(module: ModuleType) -> Any:
    loss = module.HierarchicalContextLoss("map", "output", "map", "output")
    return lambda student, teacher: loss({"map": {"output": (student, None)}}, {"map": {"output": teacher}})


DVLAB = ("dvlab-research/ReviewKD", "cede6ea6387ae9b6127de0e561507177bf19c11e", "CIFAR-100/model/reviewkd.py")
MDISTILLER = (
    "megvii-research/mdistiller",
    "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
    "mdistiller/distillers/ReviewKD.py",
)

CASES = (
    Case(
        method="review_kd",
        function="hcl_loss",
        paper="Chen et al. 2021",
        form="levels whole, 4, 2, 1 below the height, weights halved and normalised",
        shapes=((16, 32, 7, 7), (32, 64, 16, 16), (64, 64, 32, 32)),
        inputs=pair,
        ours=hcl_loss,
        peers=(
            Peer(*DVLAB, lambda module: lambda student, teacher: module.hcl([student], [teacher])),
            Peer(*MDISTILLER, lambda module: lambda student, teacher: module.hcl_loss([student], [teacher])),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
            ),
        ),
    ),
    Case(
        method="review_kd",
        function="ReviewKD",
        paper="Chen et al. 2021",
        form="attention-based fusion of four levels, then hcl_loss",
        shapes=((8, 16, 8, 8), (32, 16, 32, 32), (64, 32, 32, 32)),
        inputs=_levels,
        ours=_networks(_ours, lambda loss, ours, theirs: loss(ours, theirs)),
        peers=(Peer(*DVLAB, _official), Peer(*MDISTILLER, _official)),
    ),
)
