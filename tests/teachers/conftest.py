"""Data for teachers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset


@pytest.fixture
def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(22, 1, 8, 8, generator=generator), torch.randint(5, (22,), generator=generator))
