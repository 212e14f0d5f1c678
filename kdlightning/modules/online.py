"""Several networks that learn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.modules.base import DistillModule
from kdlightning.modules.guards import check_one_answer
from kdlightning.modules.names import base_name
from kdlightning.modules.ranks import RanksMixin
from kdlightning.modules.sequential import SequentialMixin
from kdlightning.modules.step import DistillStep
from kdlightning.schedules import Weight
from kdlightning.strategies import DML, OnlineStrategy
from kdlightning.taps import TapReader
from kdlightning.tasks import Task


def check_classes(outputs: list[ModelOutput]) -> None:
    """Raises ConfigurationError unless all networks answer in one shape."""
    shapes = [tuple(output.logits.shape) for output in outputs]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ConfigurationError(
                f"the student gives logits {shapes[0]} and peer {number} {shape}: the class counts differ; use the same"
            )


class OnlineDistillation(RanksMixin, SequentialMixin, DistillModule):
    """Online distillation: student and peers learn together, from labels and from each other.

    Terms: `task` and the strategy's (`dml`) for the student, `task_peer1`, `dml_peer1`, … for the peers; a weight given
    for `task` or `dml` holds for all networks. Feature and relation callbacks work between the networks: each learns
    from every other one. K networks cost K forward passes. Metrics: `val/acc`, `val/acc_peer1`, …, `val/acc_ensemble`.

    Args:
        student: network 0, the one that is shipped by default.
        peers: the other networks, of any architectures; None if the strategy makes them of the student (`ONE`) or
            trains one network on each process (`Codistillation`).
        strategy: how they teach each other.
        task: what batches and outputs mean.
        optimizer: makes one optimizer with a parameter group for each network; AdamW with 1e-3 by default.
        peer_optimizers: options that override the optimizer's for peer 1, 2, …, for example `[{lr: 0.01}]`.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name, numbers or schedules, merged over the defaults of the strategy.
    """

    def __init__(
        self,
        student: nn.Module,
        peers: list[nn.Module] | None = None,
        *,
        task: Task,
        strategy: OnlineStrategy | None = None,
        optimizer: OptimizerCallable | None = None,
        peer_optimizers: list[dict[str, Any]] | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        weights: dict[str, Weight] | None = None,
    ) -> None:
        super().__init__(
            student,
            task=task,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            weights=weights,
        )
        check_one_answer(task, type(self).__name__)
        self.strategy = DML() if strategy is None else strategy
        if not isinstance(self.strategy, OnlineStrategy):
            raise ConfigurationError(f"strategy must be one such as DML or KDCL, not {type(self.strategy).__name__}")
        own = self.strategy.make_peers(student)
        if own and peers:
            raise ConfigurationError(f"{type(self.strategy).__name__} makes the peers of the student: leave peers out")
        self._branches = bool(own)
        if self.strategy.by_rank and peers:
            name = type(self.strategy).__name__
            raise ConfigurationError(f"{name} trains a network of the student's kind on each process: leave peers out")
        peers = own or peers or []
        if not peers and not self.strategy.by_rank:
            raise ConfigurationError(
                "peers is empty: online distillation needs at least one network beside the student"
            )
        if len({id(network) for network in (student, *peers)}) <= len(peers):
            raise ConfigurationError("two of the networks are the same object: build each one")
        if peer_optimizers is not None and len(peer_optimizers) != len(peers):
            raise ConfigurationError(f"peer_optimizers has {len(peer_optimizers)} entries for {len(peers)} peers")
        self.peers = nn.ModuleList(peers)
        self.strategy.bind([student, *peers], task)
        self.peer_optimizers = peer_optimizers or [{} for _ in peers]
        self._init_sequence()
        self._init_ranks()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student and its peers."""
        return {"student": self.student, **{f"peer{j}": peer for j, peer in enumerate(self.peers, start=1)}}

    def links(self) -> dict[str, list[str]]:
        """Each network learns from all others."""
        names = list(self.networks)
        return {name: [other for other in names if other != name] for name in names}

    def term_defaults(self) -> Mapping[str, float]:
        """The strategy's weights, for every network."""
        own = {self.strategy.name: 1.0, **self.strategy.default_weights}
        theirs = {k: v for k, v in own.items() if k != self.strategy.name or not self.strategy.student_only}
        peers = {f"{name}_{peer}": weight for name, weight in theirs.items() for peer in list(self.networks)[1:]}
        return own | peers | self.strategy.shared_weights

    def all_weights(self) -> dict[str, Any]:
        """A weight given for `task` or the strategy holds for all networks, unless theirs is given too."""
        weights = super().all_weights()
        for name in self.term_defaults():
            base = base_name(name)
            if name != base and name not in self._given_weights:
                weights[name] = weights[base]
        return weights

    @property
    def reads_views(self) -> Any:
        """The strategy."""
        return self.strategy

    def shown(self, batch: Batch) -> list[Batch]:
        """The batch alone: further views of it are other networks' inputs."""
        if self.views > 1:
            self.check_views(batch)
        return [batch]

    def own_taps(self, network: str) -> Sequence[str]:
        """What the strategy reads."""
        return self.strategy.taps(list(self.networks).index(network))

    def build_parts(self, stage: str) -> None:
        """Builds what of the strategy depends on shapes; prediction needs none of it."""
        taps = {name: self.own_taps(name) for name in self.networks}
        if stage == "predict" or not any(taps.values()):
            return
        infos, inputs = [], self.sample_batch(stage).inputs
        for name, network in self.networks.items():
            with closing(TapReader(network, taps[name])) as reader:
                infos.append(reader.probe(inputs) if taps[name] else {})
        self.strategy.build(infos)
        self.strategy.to(next(self.student.parameters()).device)

    def run_networks(self, batch: Batch) -> dict[str, ModelOutput]:
        """All networks, each on its own view of the samples if the strategy asked for several."""
        with self.strategy.running():
            return {name: self.run_network(name, batch) for name in self._readers}

    def run_network(self, name: str, batch: Batch) -> ModelOutput:
        """One network, on its view."""
        shown = [batch.inputs, *batch.views] if self.training and self.views > 1 else [batch.inputs]
        number = list(self._readers).index(name)
        return self._readers[name](shown[number % min(self.views, len(shown))])

    def mode_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """The task's and the strategy's term of every network."""
        outputs = [step.student, *step.peers]
        check_classes(outputs)
        suffixes = ["", *(f"_{name}" for name in list(self.networks)[1:])]
        terms = {
            f"task{suffix}": self.task.loss(output, step.batch)
            for suffix, output in zip(suffixes, outputs, strict=True)
            if self.is_active(f"task{suffix}", step)
        }
        return terms | self.strategy.terms(outputs, step, lambda name: self.is_active(name, step))

    def resting(self, terms: Mapping[str, Tensor]) -> list[nn.Module]:
        """The strategy, if no term is there that trains its own parameters."""
        return [self.strategy] if self.strategy.rests(terms) else []

    def scored(self, outputs: dict[str, ModelOutput], batch: Batch, stage: str) -> dict[str, ModelOutput]:
        """All networks and their ensemble."""
        answers = list(outputs.values())
        check_classes(answers)
        if stage == "val" and self._validates_a_fit:
            self.strategy.observe(answers, batch)
        together = self.strategy.ensemble(answers)
        return outputs if together is None else {**outputs, "ensemble": together}

    def on_fit_start(self) -> None:
        """See `DistillModule.on_fit_start`; refuses a fit without the validation that the strategy learns from."""
        super().on_fit_start()
        if self.strategy.needs_validation and not self.trainer.enable_validation:
            raise ConfigurationError(
                f"{type(self.strategy).__name__}: its weights are chosen by validation, and this fit has none: "
                "give validation data, or another variant"
            )

    def on_validation_start(self) -> None:
        """See `DistillModule.on_validation_start`; the strategy forgets a pass that was broken off."""
        super().on_validation_start()
        self.strategy.begin_validation()

    def on_validation_epoch_end(self) -> None:
        """Logs `val/…`; the strategy learns that the pass is over."""
        super().on_validation_epoch_end()
        if self._validates_a_fit:
            self.strategy.end_validation()

    @property
    def _validates_a_fit(self) -> bool:
        # A validation by itself may be of other data, and must not change what the networks learn next.
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def after_optimizer_step(self, step: int) -> None:
        """The strategy follows."""
        self.strategy.after_optimizer_step(list(self.networks.values()), step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes whether the peers are branches of the student, whose trunk they have no copy of."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kdlightning"]["branches"] = self._branches

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group for each network with its adapters; the strategy's own parameters go with the student's."""
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in self.networks}
        for full, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[self._owner(full)].append(parameter)
        options = [{}, *self.peer_optimizers]
        return [
            {"params": parameters, "name": name, **option}
            for (name, parameters), option in zip(groups.items(), options, strict=True)
        ]

    def _owner(self, parameter: str) -> str:
        top, _, rest = parameter.partition(".")
        name = rest.split(".")[0]
        if top == "peers":
            return f"peer{int(name) + 1}"
        suffix = name.rpartition("_")[2]
        return suffix if top == "adapters" and suffix in self.networks else "student"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each network by itself: one network's large gradient must not shrink another's."""
        if not gradient_clip_val:
            return
        for group in optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters and gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            elif parameters:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
