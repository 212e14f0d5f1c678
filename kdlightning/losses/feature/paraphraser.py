"""The paraphraser of factor transfer: an autoencoder of the teacher's features, trained before the student."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.fit_net import fitnet_loss
from kdlightning.losses.layers import CONVOLUTIONS, NORMS, TRANSPOSED
from kdlightning.losses.numerics import check_share

SLOPE = 0.1
_KINDS = {2: "vectors", 3: "signals", 4: "maps"}
_LAYERS = ("encoder.0.weight", "encoder.4.weight", "decoder.0.weight", "decoder.4.weight")


class Paraphraser(FeatureLoss):
    """First stage of factor transfer: the mean squared error of an autoencoder of the teacher's features.

    Three 3×3 convolutions, the last two of k·C channels, and three transposed ones back, each with a bias and a leaky
    ReLU of slope 0.1 (kernel 3 for `(B, C, L)` and tokens, linear layers for vectors); no BatchNorm. Only these
    networks are trained: the student gets no gradient, so any small one will do, and `task` should weigh 0.
    `FactorTransfer` reads them from this run's checkpoint. Kim et al., "Paraphrasing Complex Network: Network
    Compression via Factor Transfer", NeurIPS 2018.

    RepDistiller trains it for 30 epochs with the squared error, as the paper has it; the authors' code for 5 with the
    absolute one. torchdistill puts a BatchNorm after each layer.
    """

    default_weights: ClassVar[dict[str, float]] = {"paraphraser": 1.0}
    spatial = "any"

    def __init__(self, rate: float = 0.5) -> None:
        """
        Args:
            rate: k, the share of the teacher's channels that its factors have; 0.5 in paper and code.
        """
        super().__init__()
        check_share("rate", rate)
        self.rate = rate

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the student is not read."""

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Encoder and decoder."""
        (shape,) = teacher
        width = shape[1]
        narrow = max(1, round(width * self.rate))
        self.encoder = convolutions(shape, (width, width, narrow, narrow))
        self.decoder = convolutions(shape, (narrow, narrow, width, width), transposed=True)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """How far the teacher's features are from what comes out of the autoencoder, a scalar."""
        features = teacher.detach()
        return fitnet_loss(self.decoder(self.encoder(features)), features)


def convolutions(
    shape: Shape, widths: Sequence[int], *, transposed: bool = False, batch_norm: bool = False
) -> nn.Sequential:
    """3-wide layers that keep the size, from each width to the next, each with a leaky ReLU.

    Args:
        shape: of the features, with batch dimension; vectors get linear layers.
        widths: one more than layers.
        transposed: transposed convolutions.
        batch_norm: a BatchNorm after each layer.
    """
    if len(shape) not in NORMS:
        raise ValueError(f"factor transfer needs vectors or maps (batch, channels, …), not shape {tuple(shape)}")
    kinds = {2: nn.Linear, **(TRANSPOSED if transposed else CONVOLUTIONS)}
    options = {} if len(shape) == 2 else {"kernel_size": 3, "padding": 1}
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers.append(kinds[len(shape)](before, after, **options))
        layers += [NORMS[len(shape)](after)] if batch_norm else []
        layers.append(nn.LeakyReLU(SLOPE, inplace=True))
    return nn.Sequential(*layers)


def read_encoder(path: str, shape: Shape, key: str | None = None) -> nn.Sequential:
    """The frozen encoder of a trained `Paraphraser`.

    Args:
        path: a checkpoint of a run that trained one, or its own state dict.
        shape: of the teacher's features, with batch dimension.
        key: with what the names of its weights begin, if the file holds several that fit.

    Raises:
        ValueError: no such file, or none in it, or none that fits, or several.
    """
    state = _read(path)
    prefixes = [name.removesuffix(_LAYERS[0]) for name in state if name.endswith(_LAYERS[0])]
    found = {name: state[name + _LAYERS[0]] for name in prefixes if all(name + layer in state for layer in _LAYERS)}
    if not found:
        raise ValueError(f"{path} holds no paraphraser: name the checkpoint of a run with the loss Paraphraser")
    # The weight of a linear layer has as many dimensions as a vector's shape, that of a convolution as many as a map's.
    fitting = [name for name, first in found.items() if (first.ndim, len(first)) == (len(shape), shape[1])]
    fitting = [name for name in fitting if key is None or name.startswith(key)]
    if not fitting:
        held = [f"{_KINDS.get(w.ndim)} of {len(w)} channels ({name.strip('.')})" for name, w in found.items()]
        wanted = f"{_KINDS[len(shape)]} of {shape[1]}"
        raise ValueError(
            f"{path} has a paraphraser of {' and '.join(held)}, and the teacher's tap gives {wanted}: train one "
            "on this very tap"
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{path} has {len(fitting)} paraphrasers for {shape[1]} channels: choose one with key, "
            f"{' or '.join(fitting)}"
        )
    (prefix,) = fitting
    encoder = convolutions(shape, (shape[1], shape[1], *[len(state[f"{prefix}encoder.{at}.weight"]) for at in (2, 4)]))
    own = f"{prefix}encoder."
    encoder.load_state_dict({name[len(own) :]: value for name, value in state.items() if name.startswith(own)})
    return encoder.requires_grad_(False)


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"there is no paraphraser at {path}: train it first, in a run with the loss Paraphraser")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no file of torch.save") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
