"""Networks that are updated one after the other within a batch, each seeing what those before it have become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.modules.names import network_of
from kdlightning.modules.step import DistillStep

if TYPE_CHECKING:
    from kdlightning.modules.online import OnlineDistillation


@dataclass
class Round:
    """One batch's turns.

    Attributes:
        batch: the batch.
        answers: the networks' newest answers; those of networks whose turn is still to come hold their graph.
        waiting: the networks whose turn is still to come.
        moment: progress and epoch, the same for all turns.
        values: the terms so far.
        loss: the sum of the losses so far.
        updated: the network whose turn was last, if its answer is older than its update.
    """

    batch: Batch
    answers: dict[str, ModelOutput]
    waiting: list[str]
    moment: dict[str, float]
    values: dict[str, Tensor]
    loss: Tensor | None = None
    updated: str | None = None

    def seen_by(self, learner: str) -> DistillStep:
        """The step as one network learns from it: the others are constants."""
        answers = {name: a if name == learner else a.detach() for name, a in self.answers.items()}
        return DistillStep.of(self.batch, answers, None, stage="train", **self.moment)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Notes the terms of a turn."""
        self.values |= {name: value for name, value in values.items() if name != "loss"}
        self.loss = values["loss"] if self.loss is None else self.loss + values["loss"]


class SequentialMixin:
    """How `OnlineDistillation` trains with a strategy that is `sequential`.

    The networks take turns: in each, one network's loss goes back and the optimizer makes a step, with gradients of
    that network and of its adapters alone; an optimizer passes over parameters without a gradient, so one optimizer
    with a group for each network is as good as one for each. All networks run once before the first turn, and all but
    the last once more, without a graph, after their own: 2K − 1 forward passes for K networks. Terms of one's own are
    those of the student's turn unless their names end in `_peer1`, ….

    The Trainer sees one optimizer step, whose closure is the first turn, and counts, schedules and saves as ever; the
    other turns go through its precision plugin, its hooks and its clipping too.
    """

    last_step: DistillStep | None

    def _init_sequence(self: OnlineDistillation) -> None:  # type: ignore[misc]
        self._round: Round | None = None
        self._turn: str | None = None

    def setup(self: OnlineDistillation, stage: str) -> None:  # type: ignore[misc]
        """See `DistillModule.setup`; refuses what turns cannot be combined with."""
        self._init_sequence()  # a run before may have been broken off between two turns
        if stage == "fit" and self.strategy.sequential:
            name, trainer = type(self.strategy).__name__, self.trainer
            schedulers = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
            if trainer.accumulate_grad_batches != 1 or any(c.going_to_accumulate_grad_batches() for c in schedulers):
                raise ConfigurationError(
                    f"{name}(sequential=True) updates the networks one after the other in every batch and cannot "
                    "accumulate gradients: set accumulate_grad_batches to 1"
                )
            if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
                raise ConfigurationError(
                    f"{name}(sequential=True) runs on one device or with ddp, not with "
                    f"{type(trainer.strategy).__name__}"
                )
        super().setup(stage)  # type: ignore[misc]

    # -- turns -----------------------------------------------------------------------------------------------------

    def training_step(self: OnlineDistillation, raw: Any, batch_idx: int) -> Tensor:  # type: ignore[misc]
        """One step; of a sequential strategy, all networks' answers and the first turn's loss."""
        if not self.strategy.sequential:
            return super().training_step(raw, batch_idx)  # type: ignore[misc]
        step = self.make_step(self.task.batch(raw), "train")
        if self.keep_last_step:
            self.last_step = step
        names = list(self.networks)
        answers = dict(zip(names, [step.student, *step.peers], strict=True))
        moment = {"progress": step.progress, "epoch": step.epoch}
        self._round = Round(step.batch, answers, names, moment, {})
        loss = self._next_loss(self._round)
        if loss is None:  # every term rests at the moment
            loss, values = self.combine({}, step)
            self._round.add(values)
        return loss

    def take_step(  # type: ignore[misc]
        self: OnlineDistillation, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None
    ) -> None:
        """The optimizer's step, or one in each network's turn."""
        if not self.strategy.sequential:
            super().take_step(epoch, batch_idx, optimizer, closure)  # type: ignore[misc]
            return
        with self._own_synchronisation():
            super().take_step(epoch, batch_idx, optimizer, closure)  # type: ignore[misc]
            assert self._round is not None
            while (loss := self._later_loss(self._round)) is not None:
                super().take_step(  # type: ignore[misc]
                    epoch, batch_idx, optimizer, lambda loss=loss: self._go_back(loss, epoch, batch_idx, optimizer)
                )
        done, self._round, self._turn = self._round, None, None
        assert done.loss is not None
        self.note_terms({**done.values, "loss": done.loss}, done.batch.size)

    def _next_loss(self: OnlineDistillation, round_: Round) -> Tensor | None:  # type: ignore[misc]
        """The loss of the next network that has a term at the moment; None after the last."""
        while round_.waiting:
            self._turn = round_.waiting.pop(0)
            step = round_.seen_by(self._turn)
            if terms := self.all_terms(step):
                loss, values = self.combine(terms, step)
                round_.add(values)
                round_.updated = self._turn
                return loss
        self._turn = None
        return None

    def _later_loss(self: OnlineDistillation, round_: Round) -> Tensor | None:  # type: ignore[misc]
        """The same, once the network that was updated has answered anew."""
        if not round_.waiting:
            return None
        with self.trainer.precision_plugin.train_step_context():
            if round_.updated is not None:
                with torch.no_grad(), self.strategy.running():
                    round_.answers[round_.updated] = self.run_network(round_.updated, round_.batch)
                round_.updated = None
            return self._next_loss(round_)

    def _go_back(  # type: ignore[misc]
        self: OnlineDistillation, loss: Tensor, epoch: int, batch_idx: int, optimizer: Any
    ) -> Tensor:
        """A later turn's closure."""
        self.optimizer_zero_grad(epoch, batch_idx, optimizer)
        self.trainer.strategy.backward(loss, optimizer)
        return loss

    # -- whose terms ------------------------------------------------------------------------------------------------

    def is_active(self: OnlineDistillation, name: str, step: DistillStep) -> bool:  # type: ignore[misc]
        """Whether a term is computed: in a network's turn, none of another's."""
        return self._turn in (None, network_of(name)) and super().is_active(name, step)  # type: ignore[misc]

    def all_terms(self: OnlineDistillation, step: DistillStep) -> dict[str, Tensor]:  # type: ignore[misc]
        """Every term whose weight is not zero; in a network's turn, those of that network."""
        terms = super().all_terms(step)  # type: ignore[misc]
        return terms if self._turn is None else {k: v for k, v in terms.items() if network_of(k) == self._turn}

    def _idle(  # type: ignore[misc]
        self: OnlineDistillation, terms: Mapping[str, Tensor], step: DistillStep
    ) -> Tensor | None:
        """Zero, but touching the adapters of the network's terms that rest, and no other network's parameters."""
        if self._turn is None:
            return super()._idle(terms, step)  # type: ignore[misc]
        resting = [self.adapters[k.key] for k in self._knowledge if k.learner == self._turn and k.key not in terms]
        zeros = [0.0 * p.sum() for module in resting for p in module.parameters() if p.requires_grad]
        return sum(zeros[1:], zeros[0]) if zeros else None

    # -- several processes -----------------------------------------------------------------------------------------

    @contextmanager
    def _own_synchronisation(self: OnlineDistillation) -> Iterator[None]:  # type: ignore[misc]
        """DDP waits for the gradients of all networks at once: within this, each turn averages its own."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, DDPStrategy):
            yield
            return
        with strategy.block_backward_sync():
            yield
        # Or it would no longer broadcast rank 0's buffers, taking the passes for accumulation.
        strategy.model.require_forward_param_sync = True  # type: ignore[union-attr]

    def on_after_backward(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """Averages a turn's gradients over the ranks."""
        if self._round is None or self.trainer.world_size == 1:
            return
        gradients: dict[torch.dtype, list[Tensor]] = {}
        for parameter in self.parameters():
            if parameter.grad is not None:
                gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for group in gradients.values():
            flat = torch.cat([gradient.flatten() for gradient in group]) / self.trainer.world_size
            torch.distributed.all_reduce(flat)
            for gradient, part in zip(group, flat.split([gradient.numel() for gradient in group]), strict=True):
                gradient.copy_(part.view_as(gradient))
