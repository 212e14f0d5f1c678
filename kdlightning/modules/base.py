"""The base of all modes: one training step, its loss, its logs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlightning.data.batch import Batch, join
from kdlightning.data.seeding import mix, seed_generators
from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.numerics import widened
from kdlightning.models.output import ModelOutput
from kdlightning.modules.evaluation import EvaluationMixin
from kdlightning.modules.guards import FiniteGuard, check_weights
from kdlightning.modules.hyperparameters import from_command_line, is_plain
from kdlightning.modules.knowledge import Adapters, KnowledgeTerm, TermSpec
from kdlightning.modules.names import base_name
from kdlightning.modules.optimization import OptimizationMixin
from kdlightning.modules.preparation import PreparationMixin
from kdlightning.modules.step import DistillStep
from kdlightning.modules.time import TimeMixin
from kdlightning.modules.views import ViewsMixin, check_same_classes
from kdlightning.schedules import Schedule, Weight, weight_at
from kdlightning.taps import TapReader
from kdlightning.tasks import Task
from kdlightning.teachers import Teacher


class DistillModule(PreparationMixin, EvaluationMixin, OptimizationMixin, TimeMixin, ViewsMixin, pl.LightningModule):
    """Base of all modes, and the plain supervised run: the student learns from labels alone.

    The loss is Σ weight·term. Terms are the task's (`task`), the mode's, those that callbacks declare and those that
    `distill_terms` returns. `forward` is the student alone.

    Args:
        student: the network that is trained and shipped.
        task: what batches and outputs mean.
        optimizer: makes the optimizer from parameters; AdamW with learning rate 1e-3 by default.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name, numbers or schedules, merged over the defaults of the methods.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        weights: dict[str, Weight] | None = None,
    ) -> None:
        super().__init__()
        self._save_arguments()
        if not isinstance(student, nn.Module):
            raise ConfigurationError(f"student must be a torch.nn.Module, not {type(student).__name__}")
        if lr_interval not in ("epoch", "step"):
            raise ConfigurationError(f"lr_interval must be epoch or step, not {lr_interval!r}")
        if not task.has_loss and any(base_name(name) == "task" for name in weights or {}):
            raise ConfigurationError(f"{type(task).__name__} has no loss of its own: leave task out of weights")
        self.student = student
        self.teacher: Teacher | None = None
        self.response: ResponseLoss | None = None
        self.task = task
        self.adapters = Adapters()
        self.last_step: DistillStep | None = None
        self.keep_last_step = False
        self.lr_interval = lr_interval
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self._given_weights: dict[str, Weight] = dict(weights or {})
        self._weights: dict[str, Weight] = {}
        self._specs: list[TermSpec] = []
        self._declared: list[TermSpec] = []
        self._declared_to = 0
        self._knowledge: list[KnowledgeTerm] = []
        self._readers: dict[str, TapReader] = {}
        self._guard = FiniteGuard()
        self._seed: int | None = None
        self._last_terms: dict[str, Tensor] = {}
        self._first_step = True
        self._init_evaluation()
        self._init_optimization()
        self._init_time()

    def _save_arguments(self) -> None:
        import inspect

        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None
        if caller is None:
            return
        ignored: list[str] = []
        if not from_command_line():
            while caller is not None and caller.f_locals.get("self") is self and "__class__" in caller.f_locals:
                ignored += [name for name, value in caller.f_locals.items() if not is_plain(value)]
                caller = caller.f_back
        assert frame is not None
        self.save_hyperparameters(ignore=ignored, frame=frame.f_back)

    # -- what users override ---------------------------------------------------------------------------------------

    def distill_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """Terms of one's own, by name: scalars, means over the batch. They weigh 1 unless `weights` says otherwise."""
        return {}

    # -- what modes define -----------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks that learn: "student", "peer1", …."""
        return {"student": self.student}

    @property
    def labels_alone(self) -> bool:
        """Whether this run distils nothing: such runs are what others are compared with."""
        return type(self) is DistillModule and not self._knowledge and not self._specs

    def links(self) -> dict[str, list[str]]:
        """For each learner the networks that it may learn from through taps."""
        return {"student": ["teacher"] if self.teacher is not None else []}

    def make_step(self, batch: Batch, stage: str) -> DistillStep:
        """Runs the networks."""
        progress = self.progress
        parts = self.shown(batch) if stage == "train" else [batch]
        whole = join(parts)
        teacher = None
        teaches_first = self.teacher is not None and not self.teacher.reads_student
        if self.teacher is not None and teaches_first:
            teacher = self.teacher(whole, None, logits=self.reads_teacher_logits())
        answers = self.run_networks(whole)
        if self.teacher is not None and not teaches_first:
            teacher = self.teacher(whole, answers["student"], logits=self.reads_teacher_logits())
        step = DistillStep.of(whole, answers, teacher, progress=progress, epoch=self.epoch_at(progress), stage=stage)
        return step if len(parts) == 1 else step.apart(parts)

    def run_networks(self, batch: Batch) -> dict[str, ModelOutput]:
        """The answers of all networks that learn, each run once."""
        return {name: reader(batch.inputs) for name, reader in self._readers.items()}

    def own_taps(self, network: str) -> Sequence[str]:
        """Taps of a network that the mode itself reads."""
        return ()

    def build_parts(self, stage: str) -> None:
        """Builds networks of the mode whose sizes depend on others, before any reader is opened."""

    def reads_teacher_logits(self) -> bool:
        """Whether a training step asks the teacher for logits."""
        return self.response is not None or self.has_own_terms

    def mode_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """The terms of the mode: the task's, and the response's against the teacher."""
        terms = {"task": self.task_term(step)} if self.is_active("task", step) else {}
        if self.response is not None and step.teacher is not None and self.is_active(self.response.name, step):
            terms[self.response.name] = self.respond(self.response, step.student, step.teacher, step)
        return terms

    def respond(self, response: ResponseLoss, student: ModelOutput, teacher: ModelOutput, step: DistillStep) -> Tensor:
        """A response loss between two answers, or between those to each view."""
        if response.views > 1:
            return self.respond_to_views(response, step)
        if response.reads == "output":
            batch = self.task.distilled(step.batch)
            value = response(student, teacher, batch=batch, progress=step.progress)
            if batch is step.batch or batch.mask is None or not getattr(response, "counts_tokens", False):
                return value
            return value * (self.task.count(step.batch) / batch.mask.sum().clamp(min=1))
        ours, theirs, batch = self.task.rows(student.logits, teacher.logits, step.batch)
        check_same_classes(response, ours, theirs)
        if not len(ours):  # no pixel or word of the batch counts: a zero that keeps the graph whole
            return ours.sum()
        return response(ours, theirs, batch=batch, progress=step.progress)

    # -- training --------------------------------------------------------------------------------------------------

    def forward(self, inputs: Any) -> Any:
        """The student's answer to a tensor, a tuple or a mapping of inputs: its logits, or its own output object."""
        from kdlightning.taps.native import call

        return call(self.student, inputs)

    def training_step(self, raw: Any, batch_idx: int) -> Tensor:
        """One step: networks, terms, their weighted sum."""
        batch = self.task.batch(raw)
        step = self.make_step(batch, "train")
        terms = self.all_terms(step)
        if self.keep_last_step:
            self.last_step = step
        loss, values = self.combine(terms, step)
        self.note_terms(values, batch.size)
        return loss

    def all_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """Every term whose weight is not zero, raw."""
        terms = self.mode_terms(step)
        for knowledge in self._knowledge:
            if self.is_active(knowledge.key, step):
                terms[knowledge.key] = knowledge.compute(self.adapters, step)
        if self.has_own_terms:
            own = self.distill_terms(step)
            self._check_own_terms(own)
            # Infinity times zero would be no number; only DDP must see parameters that nothing else reads.
            several = self.trainer.world_size > 1
            terms |= {name: value for name, value in own.items() if several or self.is_active(name, step)}
        return terms

    def combine(self, terms: Mapping[str, Tensor], step: DistillStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for the backward pass, and the detached mean values of all terms and of their sum."""
        if not terms and not any(isinstance(weight, Schedule) for weight in self._weights.values()):
            kind = type(self.task).__name__
            why = "every weight is zero" if self.task.has_loss else f"{kind} has no loss of its own: add a callback"
            raise ConfigurationError(f"no term is left: {why}")
        sums = self.task.counts_tokens
        count = torch.as_tensor(self.task.count(step.batch), device=self.device) if sums else None
        total, values = self._idle(terms, step), {}
        for name, value in terms.items():
            weight = weight_at(self._weights.get(name, 1.0), step.progress, step.epoch)
            value = widened(value)
            part = weight * value
            if count is not None:
                # Sums over tokens stay sums; a mean counts as often as the micro-batch has tokens.
                if self.is_token_term(name):
                    values[name] = value.detach() / count.clamp(min=1)
                else:
                    part, values[name] = part * count, value.detach()
            else:
                values[name] = value.detach()
            total = part if total is None else total + part
        if total is None:  # everything rests at the moment
            total = sum((0.0 * p.sum() for p in self.parameters() if p.requires_grad), torch.zeros(()))
        values["loss"] = total.detach() / count.clamp(min=1) if count is not None else total.detach()
        return self.scaled_for_tokens(total, count, step.batch), values

    def is_token_term(self, name: str) -> bool:
        """Whether a term is a sum over the task's counted tokens."""
        base = base_name(name)
        return base == "task" or (
            self.response is not None and base == self.response.name and getattr(self.response, "counts_tokens", False)
        )

    def _idle(self, terms: Mapping[str, Tensor], step: DistillStep) -> Tensor | None:
        """Zero, but touching what terms of weight zero own, so that DDP finds every parameter used."""
        resting = [self.adapters[k.key] for k in self._knowledge if k.key not in terms] + self.resting(terms)
        zeros = [0.0 * p.sum() for module in resting for p in module.parameters() if p.requires_grad]
        if self.trainer.world_size > 1:
            bases = {"task", *(base_name(name) for name in self.term_defaults())}
            for network in self.networks:
                suffix = "" if network == "student" else f"_{network}"
                output = step.output(network)
                answer = output.logits if output.has_logits else output.hidden
                if answer is not None and not any(f"{base}{suffix}" in terms for base in bases):
                    zeros.append(0.0 * answer.sum())
        return sum(zeros[1:], zeros[0]) if zeros else None

    def resting(self, terms: Mapping[str, Tensor]) -> list[nn.Module]:
        """What the mode's own terms train besides the networks, of those that weigh nothing in this step."""
        return [self.response] if self.response is not None and self.response.name not in terms else []

    def is_active(self, name: str, step: DistillStep) -> bool:
        """Whether there is such a term, and its weight is not zero at this moment."""
        if not self.task.has_loss and base_name(name) == "task":
            return False
        return weight_at(self._weights.get(name, 1.0), step.progress, step.epoch) != 0.0

    # -- logs ------------------------------------------------------------------------------------------------------

    def note_terms(self, values: dict[str, Tensor], batch_size: int) -> None:
        """Watches and logs a step's terms, detached, with their weighted sum as `loss`."""
        self._guard.add(values, self.global_step)
        logs = self.is_logging_step()
        if self._first_step or logs:
            self._guard.check(self.global_step, self.trainer)
            self._first_step = False
        self._last_terms = {"loss": values["loss"], **{k: v for k, v in values.items() if k != "loss"}}
        if logs:
            self._log_terms(batch_size)

    def is_logging_step(self) -> bool:
        """Whether the Trainer writes logs in this step; asking it is cheaper than calling `self.log` each time."""
        return self.trainer._logger_connector.should_update_logs

    def _log_terms(self, batch_size: int) -> None:
        named = {"train/loss" if name == "loss" else f"train/loss_{name}": v for name, v in self._last_terms.items()}
        self.log_dict(named, batch_size=max(batch_size, 1))

    def on_train_start(self) -> None:
        """Learns how long the run is, and settles its seed: one for all ranks."""
        self._measure_run()
        self._guard = FiniteGuard()
        self._first_step = True
        self._window_tokens = None
        self.settle_seed()

    def settle_seed(self) -> None:
        """Settles the run's seed, one for all ranks, unless it is known; all ranks call this."""
        if self._seed is None:
            own = int(os.environ.get("PL_GLOBAL_SEED") or time.time_ns() % 2**32)
            self._seed = int(self.trainer.strategy.broadcast(own))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds this step's randomness by counting, so that a resumed run draws what the undisturbed one draws."""
        seed_generators(mix(self._seed or 0, self.global_rank, self.current_epoch, batch_idx))

    def on_train_epoch_end(self) -> None:
        """Looks for terms that are not finite, and logs the last ones."""
        self._guard.check(self.global_step, self.trainer)
        if self._last_terms:
            named = {"train/loss" if n == "loss" else f"train/loss_{n}": v for n, v in self._last_terms.items()}
            self.log_dict(named, sync_dist=self.trainer.world_size > 1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Strict, but for what belongs to a teacher or response that was left out on purpose (None)."""
        absent = tuple(f"{part}." for part in ("teacher", "response") if getattr(self, part) is None)
        if strict:
            self.adapters.refuse_unknown(state_dict, "adapters.")
        kept = {name: value for name, value in state_dict.items() if not name.startswith(absent or ("\0",))}
        return super().load_state_dict(kept, strict=strict, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the seed; refuses to overwrite a good checkpoint with a run that is no longer finite."""
        self._guard.check(self.global_step, self.trainer)
        check_weights(self, self.global_step, self.trainer)
        checkpoint["kdlightning"] = {"seed": self._seed, "terms": [term.key for term in self._knowledge]}
        built = {name: getattr(network, "build_spec", None) for name, network in self.networks.items()}
        if any(built.values()):  # networks made of others: how they are built without those
            checkpoint["kdlightning"]["built"] = {name: spec for name, spec in built.items() if spec is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the seed over, and notes which terms the run had."""
        kept = checkpoint.get("kdlightning", {})
        self._seed = kept.get("seed", self._seed)
        self._loaded_terms = set(kept.get("terms", ()))
        self._loaded_averages = "weights_in_training" in checkpoint
