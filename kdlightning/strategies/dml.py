"""Deep mutual learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.tasks import Task


class DML(OnlineStrategy):
    """Deep mutual learning (Zhang et al., CVPR 2018), all networks updated at once.

    Term of network i: 1/(K−1) · Σ_{j≠i} T²·KL(p_j ‖ p_i), batch mean, the peers' probabilities detached. Default
    weights: task 1, dml 1. The paper updates the networks one after the other with predictions recomputed after each
    update; here all learn from the answers before any update, as the public PyTorch code does, at K forward passes.

    Args:
        temperature: T; the paper has 1.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "dml": 1.0}

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigurationError(f"DML: temperature must be positive, not {temperature}")
        self.temperature = temperature

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without class probabilities."""
        if task.num_classes is None or not task.class_probabilities:
            raise ConfigurationError("DML compares class probabilities: it needs a task such as Classification")

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """One loss for each network."""
        targets = [output.logits.detach() for output in outputs]
        losses = []
        for i, output in enumerate(outputs):
            others = [target for j, target in enumerate(targets) if j != i]
            pulls = [kd_loss(output.logits, other, temperature=self.temperature) for other in others]
            losses.append(sum(pulls[1:], pulls[0]) / len(pulls))
        return losses
