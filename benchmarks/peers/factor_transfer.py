"""Public implementations of factor transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdlightning.losses import Paraphraser, factor_transfer_loss
from kdlightning.losses.feature.paraphraser import convolutions
from peers.base import Case, Peer, Shape, pair

SHAPES: tuple[Shape, Shape, Shape] = ((16, 32, 8, 8), (64, 64, 8, 8), (64, 128, 16, 16))
SMALLER: tuple[Shape, Shape, Shape] = ((4, 16, 8, 8), (16, 32, 8, 8), (64, 64, 8, 8))
OFFICIAL = ("conv0", "conv1", "conv2", "deconv0", "deconv1", "deconv2")
PLAIN = tuple(f"{part}.{at}" for part in ("encoder", "decoder") for at in (0, 2, 4))
SPACED = tuple(f"{part}.{at}" for part in ("encoder", "decoder") for at in (0, 3, 6))

JANGHO = (
    "Jangho-Kim/Factor-Transfer-pytorch",
    "19cce265ebe51c751481041e223a13be2e684322",
    "Models/FeatureProjection.py",
)
REPDISTILLER = ("HobbitLong/RepDistiller", "b84f547c5db6a35318d4671d7d5c4de74c822403")
MMRAZOR = ("open-mmlab/mmrazor", "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7")
CONNECTORS = "mmrazor/models/architectures/connectors/factor_transfer_connectors.py"
TORCHDISTILL = ("yoshitomo-matsubara/torchdistill", "3e4373c45214c5c56eebac481d5bfe8b8735aa05")
STUBS = ("mmrazor", "mmrazor.registry")
BASE = "_peer.open_mmlab_mmrazor.mmrazor.models.architectures.connectors.base_connector"


def _autoencoder(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """The teacher's features, and weights and biases of encoder and decoder with half as many channels."""
    wide, narrow = shape[1], shape[1] // 2
    features = torch.randn(shape, generator=generator)
    encoder = _parameters([(wide, wide), (narrow, wide), (narrow, narrow)], generator)
    return features, *encoder, *_parameters([(narrow, narrow), (narrow, wide), (wide, wide)], generator, at=1)


def _translated(shape: Shape, generator: Generator) -> tuple[Tensor, ...]:
    """Student and teacher's factor of half the width, and the parameters of three convolutions and BatchNorms."""
    wide, narrow = shape[1], shape[1] // 2
    steps = [(wide, wide), (narrow, wide), (narrow, narrow)]
    norms = [torch.rand(after, generator=generator).add(0.5).requires_grad_() for after, _ in steps for _ in range(2)]
    factor = torch.randn((shape[0], narrow, *shape[2:]), generator=generator)
    return pair(shape, generator)[0], factor, *_parameters(steps, generator), *norms


def _parameters(sizes: Sequence[tuple[int, int]], generator: Generator, at: int = 0) -> list[Tensor]:
    """Weights of these sizes and biases; `at` says which size is the layer's output."""
    made = []
    for size in sizes:
        made.append(torch.randn((*size, 3, 3), generator=generator) * (9 * size[1 - at]) ** -0.5)
        made.append(torch.randn(size[at], generator=generator) * 0.1)
    return [tensor.requires_grad_() for tensor in made]


def _owned(
    make: Callable[[int], nn.Module], layers: Sequence[str], loss: Callable[..., Tensor], inputs: int
) -> Callable[..., Tensor]:
    """A network whose parameters are given from outside, and a loss of its answer; `inputs` come before them."""
    made: dict[Any, nn.Module] = {}
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]

    def function(*given: Tensor) -> Tensor:
        first = given[0]
        key = (first.shape[1], first.dtype)
        if key not in made:
            made[key] = make(first.shape[1]).to(first.dtype)
        values = dict(zip(names, given[inputs:], strict=True))
        return loss(functional_call(made[key], values, (first,)), *given[:inputs])

    return function


def _parts(connector: Any) -> nn.Module:
    """The networks of a connector whose base class is left out."""
    return nn.ModuleDict({name: part for name, part in vars(connector).items() if isinstance(part, nn.Module)})


class _Whole(nn.Module):
    """A network of which `forward` is called with further arguments, or of which one of several answers is meant."""

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, features: Tensor) -> Tensor:
        return self.call(self.network, features)


def _paraphraser(
    make: Callable[[int], nn.Module], layers: Sequence[str], call: Callable[[Any, Tensor], Tensor]
) -> Callable[..., Tensor]:
    inner = [f"network.{layer}" for layer in layers]
    return _owned(lambda width: _Whole(make(width), call), inner, F.mse_loss, 1)


def _our_paraphraser() -> Callable[..., Tensor]:
    def make(width: int) -> nn.Module:
        loss = Paraphraser()
        loss.build([(2, 1, 8, 8)], [(2, width, 8, 8)])
        return _Whole(loss, lambda network, features: network(features, features))

    return _owned(make, [f"network.{layer}" for layer in PLAIN], lambda value, features: value, 1)


def _translator(make: Callable[[int], nn.Module], layers: Sequence[str]) -> Callable[..., Tensor]:
    def loss(answer: Tensor, student: Tensor, factor: Tensor) -> Tensor:
        return F.l1_loss(F.normalize(answer.flatten(1)), F.normalize(factor.flatten(1)))

    return _owned(make, layers, loss, 2)


def _our_translator() -> Callable[..., Tensor]:
    def make(width: int) -> nn.Module:
        return convolutions((2, width, 8, 8), (width, width, width // 2, width // 2), batch_norm=True)

    layers = [str(at) for at in (0, 3, 6, 1, 4, 7)]
    return _owned(make, layers, lambda answer, student, factor: factor_transfer_loss(answer, factor), 2)


def _mmrazor_translator(module: ModuleType) -> Any:
    layers = [str(at) for at in (0, 3, 6, 1, 4, 7)]
    return _translator(lambda width: module.Translator(width, width // 2).encoder, layers)


def _torchdistill(module: ModuleType) -> Any:
    loss = module.FTLoss(paraphraser_path="t", translator_path="s")
    return lambda student, teacher: loss({"s": {"output": student}}, {"t": {"output": teacher}})


CASES = (
    Case(
        method="factor_transfer",
        function="factor_transfer_loss",
        paper="Kim et al. 2018",
        form="mean absolute difference of unit vectors",
        shapes=SHAPES,
        inputs=pair,
        ours=factor_transfer_loss,
        peers=(
            Peer(
                *MMRAZOR, "mmrazor/models/losses/factor_transfer_loss.py", lambda module: module.FTLoss(), stubs=STUBS
            ),
            Peer(*TORCHDISTILL, "torchdistill/losses/mid_level.py", _torchdistill),
            Peer(
                *REPDISTILLER,
                "distiller_zoo/FT.py",
                lambda module: module.FactorTransfer(),
                agrees=False,
                note="averages the squares over the channels before it normalises; the paper does not",
            ),
        ),
    ),
    Case(
        method="factor_transfer",
        function="Paraphraser",
        paper="Kim et al. 2018",
        form="mean squared error of the autoencoder, half the channels",
        shapes=SMALLER,
        inputs=_autoencoder,
        ours=_our_paraphraser(),
        peers=(
            Peer(
                *JANGHO,
                lambda module: _paraphraser(
                    lambda width: module.Paraphraser(width, width // 2), OFFICIAL, lambda network, x: network(x, 0)
                ),
                note="the authors' networks, with the paper's squared error; their script takes the absolute one",
            ),
            Peer(
                *REPDISTILLER,
                "models/util.py",
                lambda module: _paraphraser(
                    lambda width: module.Paraphraser((2, width, 8, 8)), SPACED, lambda network, x: network(x)[1]
                ),
            ),
            Peer(
                *MMRAZOR,
                CONNECTORS,
                lambda module: _paraphraser(
                    lambda width: _parts(module.Paraphraser(width, width // 2)),
                    SPACED,
                    lambda network, x: network["decoder"](network["encoder"](x)),
                ),
                stubs=(*STUBS, BASE),
            ),
        ),
    ),
    Case(
        method="factor_transfer",
        function="FactorTransfer",
        paper="Kim et al. 2018",
        form="translator with BatchNorm, then factor_transfer_loss",
        shapes=SMALLER,
        inputs=_translated,
        ours=_our_translator(),
        peers=(
            Peer(*MMRAZOR, CONNECTORS, _mmrazor_translator, note="its translator", stubs=(*STUBS, BASE)),
            Peer(
                *REPDISTILLER,
                "models/util.py",
                lambda module: _translator(
                    lambda width: module.Translator((2, width, 8, 8), (2, width, 8, 8)),
                    [f"encoder.{at}" for at in (0, 3, 6, 1, 4, 7)],
                ),
                note="its translator, with the paper's distance",
            ),
        ),
    ),
)
