"""Public implementations of CRD."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdlightning.losses import CRD, LossContext
from peers.base import Case, Peer, Shape, pair

CLASSES = 10
SAMPLES = {16: 400, 32: 2000, 64: 10000}
"""Training samples by batch size."""
NEGATIVES = {400: 128, 2000: 1024, 10000: 4096}
"""K by training samples."""
TEMPERATURE, MOMENTUM, WIDTH = 0.07, 0.5, 128


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Features, the embeddings' weights and biases, two banks, the batch's samples, an order of all samples, and each
    sample followed by the negatives that it takes from this order."""
    batch, width = shape
    samples = SAMPLES[batch]
    student, teacher = pair(shape, generator, wider=2)
    linear = [torch.randn((WIDTH, wide), generator=generator) * wide**-0.5 for wide in (width, 2 * width)]
    biases = [torch.randn(WIDTH, generator=generator) * 0.1 for _ in range(2)]
    parameters = [tensor.requires_grad_() for layer in zip(linear, biases, strict=True) for tensor in layer]
    banks = [(2 * torch.rand((samples, WIDTH), generator=generator) - 1) * (3 / WIDTH) ** 0.5 for _ in range(2)]
    index = torch.randperm(samples, generator=generator)[:batch]
    order = torch.randperm(samples, generator=generator)
    negative = order % CLASSES != index[:, None] % CLASSES
    places = (~negative).byte().argsort(dim=1, stable=True)[:, : NEGATIVES[samples]]
    return student, teacher, *parameters, *banks, index, order, torch.cat([index[:, None], order[places]], 1)


class _InThisOrder(CRD):
    """Draws an order, as in training, and takes the given one."""

    given: Tensor

    def order(self) -> Tensor:
        return self.given[: len(super().order())]


@cache
def _made(samples: int, width: int) -> _InThisOrder:
    loss = _InThisOrder(WIDTH, NEGATIVES[samples], TEMPERATURE, MOMENTUM)
    loss.bind(LossContext(nn.Identity(), None, samples=samples, labels=torch.arange(samples) % CLASSES))
    loss.build([(1, width)], [(1, 2 * width)])
    return loss


def _ours(student: Tensor, teacher: Tensor, *rest: Tensor) -> Tensor:
    *parameters, first, second, index, order, _ = rest
    loss = _made(len(first), student.shape[1])
    loss.given, loss._settled = order, False
    names = [f"{side}_embedding.{part}" for side in ("student", "teacher") for part in ("weight", "bias")]
    state = dict(zip(names, parameters, strict=True))
    # The banks are moved in place: each call has its own.
    state |= {"student_bank": first.clone(), "teacher_bank": second.clone(), "log_normalizers": student.new_zeros(2)}
    return functional_call(loss, state, (student, teacher), {"batch": SimpleNamespace(index=index)})


def _on_embeddings(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a loss of embeddings, banks, samples and negatives one of our inputs."""

    def loss(student: Tensor, teacher: Tensor, *rest: Tensor) -> Tensor:
        w1, b1, w2, b2, first, second, index, _, chosen = rest
        vectors = F.normalize(F.linear(student, w1, b1)), F.normalize(F.linear(teacher, w2, b2))
        return function(*vectors, first.clone(), second.clone(), index, chosen)

    return loss


def _settings(bank: Tensor) -> Tensor:
    """What the authors' memory keeps in a buffer: K, T, two Z that are not settled, momentum."""
    return torch.tensor([NEGATIVES[len(bank)], TEMPERATURE, -1, -1, MOMENTUM], dtype=bank.dtype)


def _authors(module: ModuleType) -> Any:
    # The memory's table for drawing goes to a CUDA device when it is made; with negatives given it is not used.
    names = module.ContrastMemory.forward.__globals__
    names["AliasMethod"].cuda = lambda self: None
    names["print"] = lambda *words: None  # of each first batch, as every one is here

    @cache
    def parts(samples: int) -> tuple[nn.Module, nn.Module]:
        memory = module.ContrastMemory(WIDTH, samples, NEGATIVES[samples], TEMPERATURE, MOMENTUM)
        return memory, module.ContrastLoss(samples)

    def function(own: Tensor, other: Tensor, first: Tensor, second: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
        memory, contrast = parts(len(first))
        state = {"memory_v1": first, "memory_v2": second, "params": _settings(first)}
        outs = functional_call(memory, state, (own, other, index, chosen))
        return sum((contrast(out).sum() for out in outs), own.new_zeros(()))

    return _on_embeddings(function)


def _torchdistill(module: ModuleType) -> Any:
    @cache
    def made(samples: int) -> nn.Module:
        count = NEGATIVES[samples]
        loss: nn.Module = module.CRDLoss("norm", "empty", "norm", WIDTH, samples, count, samples, TEMPERATURE, MOMENTUM)
        return loss

    def function(own: Tensor, other: Tensor, first: Tensor, second: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
        numbers = {"pos_idx": index, "contrast_idx": chosen}
        state = {"memory_v1": first, "memory_v2": second, "params": _settings(first)}
        inputs = {"norm": {"output": own}, "empty": {"input": numbers}}, {"norm": {"output": other}}
        return functional_call(made(len(first)), state, inputs).sum()

    return _on_embeddings(function)


def _zoo(module: ModuleType) -> Any:
    @cache
    def parts(samples: int) -> tuple[Any, nn.Module]:
        memory = module.ContrastMemory(WIDTH, samples, NEGATIVES[samples], TEMPERATURE, MOMENTUM)
        return memory, module.ContrastLoss(samples)

    def function(own: Tensor, other: Tensor, first: Tensor, second: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
        memory, contrast = parts(len(first))
        memory.Z_s = memory.Z_t = None
        outs = functional_call(memory, {"memory_s": first, "memory_t": second}, (own, other, index, chosen))
        return sum((contrast(out) for out in outs), own.new_zeros(()))

    return _on_embeddings(function)


CASES = (
    Case(
        method="crd",
        function="CRD",
        paper="Tian et al. 2020",
        form="two embeddings and banks, K negatives from other classes, both directions, Z of this batch",
        shapes=((16, 64), (32, 128), (64, 256)),
        inputs=_inputs,
        ours=_ours,
        peers=(
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "crd/criterion.py",
                _authors,
                note="the authors' code; given our negatives, which its data set would draw",
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/CRD.py",
                _authors,
                note="given our negatives",
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/crd_loss.py",
                _authors,
                note="given our negatives",
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                _torchdistill,
                note="given our negatives",
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/crd.py",
                _zoo,
                note="given our negatives",
            ),
        ),
    ),
)
