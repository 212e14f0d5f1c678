"""Pairs of networks of several libraries, and data for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture
def net() -> Any:
    from kdlightning import ConvNet

    def make(width: int, seed: int = 0, **options: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ConvNet(5, widths=(width, 2 * width), **options)

    return make


@pytest.fixture
def images() -> Any:
    def make(count: int = 16, size: int = 8, batch_size: int = 8) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(
            torch.randn(count, 1, size, size, generator=generator), torch.randint(5, (count,), generator=generator)
        )
        return DataLoader(data, batch_size)

    return make
