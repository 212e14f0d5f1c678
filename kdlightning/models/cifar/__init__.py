"""The networks in which the distillation literature reports CIFAR-100, by the names it has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.cifar.base import CifarNetwork
from kdlightning.models.cifar.mobile_net_v2 import CifarMobileNetV2
from kdlightning.models.cifar.resnet import CifarResNet
from kdlightning.models.cifar.shuffle_net_v1 import CifarShuffleNetV1
from kdlightning.models.cifar.shuffle_net_v2 import CifarShuffleNetV2
from kdlightning.models.cifar.vgg import CifarVGG
from kdlightning.models.cifar.wide_resnet import CifarWideResNet
from kdlightning.models.weights import fill, read_weights

__all__ = [
    "CIFAR_NETWORKS",
    "CifarMobileNetV2",
    "CifarNetwork",
    "CifarResNet",
    "CifarShuffleNetV1",
    "CifarShuffleNetV2",
    "CifarVGG",
    "CifarWideResNet",
    "cifar_model",
]

_X4 = (32, 64, 128, 256)
_IMAGENET = (64, 64, 128, 256, 512)

CIFAR_NETWORKS: dict[str, tuple[Callable[..., CifarNetwork], Mapping[str, Any]]] = {
    **{f"resnet{6 * n + 2}": (CifarResNet, {"blocks": (n, n, n)}) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": (CifarResNet, {"blocks": (n, n, n), "widths": _X4}) for n in (1, 5)},
    "resnet18": (CifarResNet, {"blocks": (2, 2, 2, 2), "widths": _IMAGENET}),
    "resnet34": (CifarResNet, {"blocks": (3, 4, 6, 3), "widths": _IMAGENET}),
    "resnet50": (CifarResNet, {"blocks": (3, 4, 6, 3), "widths": _IMAGENET, "bottleneck": True}),
    **{f"wrn_{d}_{k}": (CifarWideResNet, {"depth": d, "width": k}) for d in (16, 40) for k in (1, 2)},
    "vgg8": (CifarVGG, {"blocks": (1, 1, 1, 1, 1)}),
    "vgg11": (CifarVGG, {"blocks": (1, 1, 2, 2, 2)}),
    "vgg13": (CifarVGG, {"blocks": (2, 2, 2, 2, 2)}),
    "vgg16": (CifarVGG, {"blocks": (2, 2, 3, 3, 3)}),
    "vgg19": (CifarVGG, {"blocks": (2, 2, 4, 4, 4)}),
    "mobilenetv2": (CifarMobileNetV2, {"width": 0.5, "expansion": 6}),
    "shufflenetv1": (CifarShuffleNetV1, {}),
    "shufflenetv2": (CifarShuffleNetV2, {}),
}
"""Class and options by name."""


def cifar_model(name: str, num_classes: int = 100, in_channels: int = 3, checkpoint: str | None = None) -> CifarNetwork:
    """A network of the CIFAR literature, for 32×32 images.

    The names are those of CRD's benchmark: `resnet8`, `14`, `20`, `32`, `44`, `56` and `110`; `resnet8x4` and
    `resnet32x4`; `wrn_16_1`, `wrn_16_2`, `wrn_40_1` and `wrn_40_2`; `vgg8`, `11`, `13`, `16` and `19` (all with
    BatchNorm); `mobilenetv2` (half width, T = 6), `shufflenetv1`, `shufflenetv2`; `resnet50` of four stages, and
    `resnet18` and `resnet34` of its kind. Their classes take further options.

    Args:
        name: see above.
        num_classes: number of classes.
        in_channels: channels of the input.
        checkpoint: a local file of weights: of this network, or as published with the code of CRD and its followers.
    """
    if name not in CIFAR_NETWORKS:
        raise ConfigurationError(f"no CIFAR network {name!r}{nearest(name, CIFAR_NETWORKS)}")
    network, options = CIFAR_NETWORKS[name]
    model = network(num_classes, in_channels=in_channels, **options)
    if checkpoint is None:
        return model
    weights = {model.own_key(key): value for key, value in read_weights(checkpoint).items()}
    fill(model, weights, str(checkpoint))
    return model
