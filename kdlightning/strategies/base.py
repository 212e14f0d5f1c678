"""How several networks that learn together teach each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.losses.base import term_name
from kdlightning.losses.numerics import widened
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task


class OnlineStrategy(nn.Module):
    """Base: one loss for each network, from all networks' answers to one batch.

    Subclasses implement `forward`. Terms are named after the class in snake case, `dml` for the student and
    `dml_peer1`, … for the others; a weight given for `dml` holds for all.
    """

    default_weights: ClassVar[dict[str, float]] = {}

    @property
    def name(self) -> str:
        """Name of the term."""
        return term_name(type(self))

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Called once when the module is made; gates and branches are built here."""

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """One raw loss for each network."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(outputs, batch, progress)")

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput | None:
        """What all networks say together; by default the logarithm of their mean probabilities."""
        log_probabilities = torch.stack([widened(output.logits).log_softmax(dim=-1) for output in outputs])
        return ModelOutput(log_probabilities.logsumexp(dim=0))
