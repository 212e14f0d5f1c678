"""What the CIFAR networks of the literature share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """Perhaps a stem, stages, perhaps a tail, average pooling, linear layer.

    Taps: `stages.0` … `stages.N`, `stem` and `tail` where there are, `pre_logits` (the pooled vector), `logits`. No
    activation works in place, so a tap keeps what it was given.
    """

    published_keys: ClassVar[dict[str, str]] = {}
    """Patterns of the key names in published weights of the architecture, and what they are here."""

    input_size = (3, 32, 32)

    def __init__(
        self,
        num_classes: int,
        stem: nn.Module | None,
        stages: Iterable[nn.Module],
        width: int,
        tail: nn.Module | None = None,
    ) -> None:
        """
        Args:
            num_classes: number of outputs.
            stem: what comes before the stages, if anything.
            stages: in their order.
            width: channels that are pooled.
            tail: what comes after the stages, if anything.
        """
        super().__init__()
        self.num_classes = num_classes
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.tail = tail
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        for part in (self.stem, self.stages, self.tail):
            x = x if part is None else part(x)
        return self.fc(self.flatten(self.pool(x)))

    def get_classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self.fc

    @classmethod
    def own_key(cls, name: str) -> str:
        """A key name of published weights as it is called here; others are left as they are."""
        name = name.removeprefix("module.")
        for pattern, here in cls.published_keys.items():
            name = re.sub(pattern, here, name)
        return name


def initialise(network: CifarNetwork, linear_std: float | None = None) -> None:
    """He's normal distribution over the outgoing connections for convolutions, without bias.

    Args:
        network: all of its convolutions; BatchNorm is left at 1 and 0, where it begins.
        linear_std: deviation of the linear layer's weights, without bias; None leaves PyTorch's own.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if linear_std is not None:
        nn.init.normal_(network.fc.weight, std=linear_std)
        nn.init.zeros_(network.fc.bias)
