"""Deep mutual learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class DML(OnlineStrategy):
    """Deep mutual learning (Zhang et al., CVPR 2018).

    Term of network i: 1/(K−1) · Σ_{j≠i} T²·KL(p_j ‖ p_i), batch mean, the peers' probabilities detached. Default
    weights: task 1, dml 1.

    The paper updates the networks one after the other, and each learns from what those before it answer once they are
    updated: `sequential=True`, 2K − 1 forward passes and K updates a batch, without accumulation of gradients. The
    answers anew are given in training mode, so batch norms see the batch twice and dropout is drawn anew. By default
    all learn from the answers before any update, as the public PyTorch code does, at K forward passes.

    Args:
        temperature: T; the paper has 1.
        sequential: whether the networks are updated one after the other.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "dml": 1.0}

    def __init__(self, temperature: float = 1.0, sequential: bool = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"DML: temperature must be positive, not {temperature}")
        self.temperature = temperature
        self.sequential = sequential

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without class probabilities."""
        check_class_probabilities("DML", task)

    def terms(
        self, outputs: Sequence[ModelOutput], step: DistillStep, active: Callable[[str], bool]
    ) -> dict[str, Tensor]:
        """The terms that are wanted; in a network's turn that is one."""
        names = self.term_names(len(outputs))
        return {name: self.pull(number, outputs) for number, name in enumerate(names) if active(name)}

    def pull(self, network: int, outputs: Sequence[ModelOutput]) -> Tensor:
        """The mean divergence of network 0, 1, … from the others."""
        mine, others = outputs[network].logits, [o.logits for j, o in enumerate(outputs) if j != network]
        pulls = [kd_loss(mine, other, temperature=self.temperature) for other in others]
        return sum(pulls[1:], pulls[0]) / len(pulls)
