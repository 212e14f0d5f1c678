"""Networks with everything that makes hooks awkward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Awkward(nn.Module):
    """A tuple output, a module called twice, a module that is never called, a tensor that is overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(4, 4, 1)
        self.pair = Pair()
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = self.shared(self.shared(x))
        x, _ = self.pair(x, scale=2.0)
        return self.fc(x.mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        y = x * scale
        return y, x


@pytest.fixture
def awkward() -> Any:
    torch.manual_seed(0)
    return Awkward()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def timm_net() -> Any:
    from kdlightning import timm_model

    def make(name: str, size: int = 32, **options: Any) -> nn.Module:
        sized = {"img_size": size, "patch_size": 8} if "vit" in name else {}
        torch.manual_seed(0)
        return timm_model(name, num_classes=5, in_chans=1, options={**sized, **options})

    return make


@pytest.fixture(scope="session")
def encoder() -> Any:
    """A tiny BERT classifier with random weights."""
    from kdlightning import transformers_model

    def make(hidden: int = 16, layers: int = 3, **config: Any) -> nn.Module:
        torch.manual_seed(0)
        sizes = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 31,
            "max_position_embeddings": 32,
            "num_labels": 3,
        }
        return transformers_model(model_type="bert", config={**sizes, **config})

    return make
