"""How several networks that learn together teach each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.losses.base import term_name
from kdlightning.losses.numerics import widened
from kdlightning.models.output import ModelOutput
from kdlightning.taps import TapInfo, channels_first
from kdlightning.tasks import Task

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class OnlineStrategy(nn.Module):
    """Base: one loss for each network, from all networks' answers to one batch.

    Subclasses implement `forward`. Terms are named after the class in snake case, `dml` for the student and
    `dml_peer1`, … for the others; a weight given for `dml` holds for all.

    Attributes:
        default_weights: of the terms that each network has, the task's included.
        shared_weights: of terms that there is one of, by name.
        views: augmentations of each sample that a training step reads, of which network i is shown number i modulo
            `views`; settled in `bind`.
        strong_views: whether the further ones are to be augmented more strongly.
        student_only: whether the peers have no such term.
        sequential: whether the networks are updated one after the other in each batch. Then `terms` is called once for
            each network, with its own answer and the others' newest, detached, and `active` for its terms alone.
        needs_validation: whether a fit without validation makes no sense.
        by_rank: whether each process trains a network of its own, the student there, and there are no peers.
        draw_anew: whether such networks begin with different weights.
        copies: of such a strategy, frozen networks of other processes by rank; in checkpoints, but no part of the
            module: nobody else moves, trains or averages them.
    """

    default_weights: ClassVar[dict[str, float]] = {}
    shared_weights: ClassVar[dict[str, float]] = {}
    views: int = 1
    strong_views: ClassVar[bool] = False
    student_only: bool = False
    sequential: bool = False
    needs_validation: bool = False
    by_rank: ClassVar[bool] = False
    draw_anew: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[int, nn.Module] = {}
        self._infos: list[Mapping[str, TapInfo]] = []

    @property
    def name(self) -> str:
        """Name of the term."""
        return term_name(type(self))

    def term_names(self, networks: int) -> list[str]:
        """Names of the term of network 0, 1, …."""
        return [self.name, *(f"{self.name}_peer{number}" for number in range(1, networks))]

    def make_peers(self, student: nn.Module) -> list[nn.Module]:
        """The other networks, where the strategy makes them of the student; called once, before `bind`."""
        return []

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Called once when the module is made: checks the task, sees all networks."""

    def taps(self, network: int) -> Sequence[str]:
        """Taps of network 0, 1, … that the strategy itself reads."""
        return ()

    def build(self, infos: Sequence[Mapping[str, TapInfo]]) -> None:
        """Told of each network's taps before training; subclasses build parts that learn here, unless they are there.

        Their container is a `Parts`, so that a checkpoint loads without them.
        """
        self._infos = list(infos)

    def feature(self, outputs: Sequence[ModelOutput], network: int, tap: str) -> Tensor:
        """A tap of `taps`, channels first."""
        return channels_first(outputs[network].taps[tap], self._infos[network][tap])

    def running(self) -> AbstractContextManager[None]:
        """Entered while the networks run, one after the other in their order."""
        return nullcontext()

    def terms(
        self, outputs: Sequence[ModelOutput], step: DistillStep, active: Callable[[str], bool]
    ) -> dict[str, Tensor]:
        """The terms whose weight is not zero at the moment, raw; by default those that `forward` computes."""
        names = self.term_names(len(outputs))
        if not any(active(name) for name in names):
            return {}
        losses = self(outputs, batch=step.batch, progress=step.progress)
        return {name: loss for name, loss in zip(names, losses, strict=True) if active(name)}

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """One raw loss for each network."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(outputs, batch, progress)")

    def rests(self, terms: Mapping[str, Tensor]) -> bool:
        """Whether none of the terms of a step, by name, trains the strategy's own parameters."""
        own = (self.name, *self.shared_weights)
        return not any(name in own or name.startswith(f"{self.name}_peer") for name in terms)

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput | None:
        """What all networks say together; by default the logarithm of their mean probabilities."""
        log_probabilities = torch.stack([widened(output.logits).log_softmax(dim=-1) for output in outputs])
        return ModelOutput(log_probabilities.logsumexp(dim=0))

    def begin_validation(self) -> None:
        """Called before each validation pass: the one before may have been broken off."""

    def observe(self, outputs: Sequence[ModelOutput], batch: Batch) -> None:
        """Called with each batch of a fit's validation, outside sanity checks."""

    def end_validation(self) -> None:
        """Called when a validation pass of a fit is over."""

    def start(self, networks: Sequence[nn.Module], step: int) -> None:
        """Called when training starts or goes on, after `step` optimizer steps."""

    def after_optimizer_step(self, networks: Sequence[nn.Module], step: int) -> None:
        """Called after each optimizer step; `step` counts from 1."""
