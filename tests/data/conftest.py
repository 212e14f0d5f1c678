"""Data sets and a module that remembers the batches it saw."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy
import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)
settings.register_profile("patient", deadline=None, max_examples=50)
settings.load_profile("patient")


class Noisy(torch.utils.data.Dataset):
    """Sample i is `[i, torch noise, python noise, numpy noise]`."""

    def __init__(self, size: int = 23) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()).item(), random.random(), numpy.random.rand()], dtype=torch.float64)


class Recorder(L.LightningModule):
    """Trains a tiny layer with dropout, remembers every batch, and dies before batch number `die_at`."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.die_at = die_at
        self.seen: list[tuple[int, list[float]]] = []
        self.count = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.die_at is not None and self.count == self.die_at:
            raise KeyboardInterrupt
        self.count += 1
        self.seen.append((self.current_epoch, batch.data.flatten().tolist()))
        return self.layer(batch.data[:, 1:].float()).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3)  # validation may draw as it likes

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def noisy() -> type[Noisy]:
    return Noisy


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("KDLIGHTNING_DATA")
    if not folder:
        pytest.skip("KDLIGHTNING_DATA does not name a folder of real data sets")
    return Path(folder)
