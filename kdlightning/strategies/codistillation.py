"""Networks on different processes that learn from stale copies of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.distributed
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.online import codistillation_loss
from kdlightning.models.output import ModelOutput
from kdlightning.models.packed import frozen_copy, network_of_rank, unpack
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.taps import TapReader
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class Codistillation(OnlineStrategy):
    """Codistillation (Anil et al., "Large scale distributed neural network training through online distillation", ICLR
    2018): each process trains a network of its own on its own part of the data.

    Term of the network on process i of N: T²·KL(1/(N−1) Σ_{j≠i} softmax(z̃_j/T) ‖ softmax(z_i/T)), batch mean. z̃_j is
    what a copy of network j answers to the batch of process i; gradients do not flow into it. Gradients are not
    averaged. Copies are made after `burn_in` optimizer steps and every `interval` steps from there on, of weights and
    buffers, so that they are 0 to `interval` − 1 steps old; until the first the task's loss is alone. A step costs
    N − 1 forward passes beside the student's, and memory for N − 1 networks. Default weights: task 1, codistillation 1.

    The paper's: networks of one architecture on disjoint parts of the data, the mean of the others' predictions from
    stale weights as soft target, and the distillation turned on after a burn-in. It takes the cross-entropy with the
    target, which differs by the target's entropy and has the same gradient at T = 1. Not the paper's: T, the default
    interval, a burn-in of 0 by default (the length that helps depends on the run), copies in evaluation mode (with the
    running statistics that come along, so that no sample's target depends on the others of its batch), that all
    exchange at the same step (its workers read each other's newest checkpoint when it suits them), and that DDP waits
    for all processes in each step. Groups of processes that share one network are not supported.

    Start several processes: `--trainer.devices 2 --trainer.strategy ddp`, or on several machines. All networks have the
    student's architecture; those of processes other than the first are drawn anew from the run's seed. Validation, test
    and prediction are of the first process's network, on all processes' data; it is `student` in checkpoints and
    exports, and the others are `peer1`, `peer2`, …. Logged losses are the first's, but for an epoch's last, which are
    means over all. Knowledge callbacks and averages of weights are refused.

    Args:
        interval: optimizer steps between two exchanges.
        temperature: T > 0.
        burn_in: optimizer steps before the first exchange.
        draw_anew: False starts all networks from the first one's weights, for students that are pretrained.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "codistillation": 1.0}
    by_rank: ClassVar[bool] = True

    def __init__(self, interval: int = 50, temperature: float = 1.0, burn_in: int = 0, draw_anew: bool = True) -> None:
        super().__init__()
        if interval < 1:
            raise ConfigurationError(f"Codistillation: interval must be at least 1, not {interval}")
        if not temperature > 0:
            raise ConfigurationError(f"Codistillation: temperature must be above 0, not {temperature}")
        if burn_in < 0:
            raise ConfigurationError(f"Codistillation: burn_in must be at least 0, not {burn_in}")
        self.interval = interval
        self.temperature = temperature
        self.burn_in = burn_in
        self.draw_anew = draw_anew
        # DDP refuses a module without a parameter of its own to average: this one stays zero.
        self.anchor = nn.Parameter(torch.zeros(()))

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without class probabilities."""
        check_class_probabilities("Codistillation", task)

    def terms(
        self, outputs: Sequence[ModelOutput], step: DistillStep, active: Callable[[str], bool]
    ) -> dict[str, Tensor]:
        """The term, once there are copies."""
        if not self.copies or not active(self.name):
            return {}
        with torch.no_grad():
            others = [TapReader(copy)(step.batch.inputs).logits for copy in self.copies.values()]
        return {self.name: codistillation_loss(outputs[0].logits, others, temperature=self.temperature)}

    def rests(self, terms: Mapping[str, Tensor]) -> bool:
        """Always: no term trains the anchor, and DDP must see it used."""
        return True

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput | None:
        """None: the other networks are elsewhere."""
        return None

    def start(self, networks: Sequence[nn.Module], step: int) -> None:
        """The first exchange, unless it is still to come or a checkpoint brought the copies."""
        if not self.copies and step >= self.burn_in:
            self.exchange(networks[0])

    def after_optimizer_step(self, networks: Sequence[nn.Module], step: int) -> None:
        """Exchanges the networks if it is time."""
        if step >= self.burn_in and (step - self.burn_in) % self.interval == 0:
            self.exchange(networks[0])

    def exchange(self, student: nn.Module) -> None:
        """Every process gets the others' networks as they are now; all must call this together."""
        mine = torch.distributed.get_rank()
        for rank in range(torch.distributed.get_world_size()):
            flat = network_of_rank(student, rank)
            if rank != mine:
                if rank not in self.copies:
                    self.copies[rank] = frozen_copy(student)
                unpack(self.copies[rank], flat)
