"""A network that teaches itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.modules.base import DistillModule
from kdlightning.modules.guards import check_one_answer
from kdlightning.modules.step import DistillStep
from kdlightning.schedules import Weight
from kdlightning.taps import TapReader
from kdlightning.tasks import Task
from kdlightning.teachers import SelfTeacher


class SelfDistillation(DistillModule):
    """Self-distillation: the student's own past, average, depth or better-informed copy teaches it.

    Terms: `task`, and the self-teacher's, named after its class in snake case (`pskd`, `mean_teacher`). Callbacks add
    feature and relation terms where the self-teacher is a network (`MeanTeacher`) or attaches exits (`BYOT`): each exit
    learns from the student's deepest part, `fit_net_exit1`, …, and has metrics of its own, `val/acc_exit1`, ….

    Args:
        student: the network that is trained and shipped.
        teacher: where the targets come from. None loads a checkpoint without it, for prediction and export.
        task: what batches and outputs mean.
        optimizer: makes the optimizer from parameters; AdamW with learning rate 1e-3 by default.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name, numbers or schedules, merged over the defaults of the self-teacher.
    """

    teacher: SelfTeacher | None

    def __init__(
        self,
        student: nn.Module,
        teacher: SelfTeacher | None = None,
        *,
        task: Task,
        optimizer: OptimizerCallable | None = None,
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
        if teacher is not None:
            if not isinstance(teacher, SelfTeacher):
                raise ConfigurationError(
                    f"teacher must be a self-teacher such as PSKD or MeanTeacher, not {type(teacher).__name__}; for a "
                    "trained network use OfflineDistillation"
                )
            teacher.bind(student, task)
            self._ddp_params_and_buffers_to_ignore = [f"teacher.{name}" for name in sorted(teacher.rank_local)]
        self.teacher = teacher
        self._teacher_epoch: int | None = None
        self._reads_taps = False

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student and the exits that the self-teacher has attached to it."""
        exits = {} if self.teacher is None else self.teacher.exits
        return {"student": self.student} | {f"exit{k}": part for k, part in enumerate(exits.values(), start=1)}

    def links(self) -> dict[str, list[str]]:
        """Exits learn from the student, the student from the self-teacher if it is a network."""
        exits = [name for name in self.networks if name != "student"]
        return {name: ["student"] for name in exits} or super().links()

    def setup(self, stage: str) -> None:
        """See `DistillModule.setup`; a fit needs the teacher."""
        if stage == "fit" and self.teacher is None:
            raise ConfigurationError("teacher is None: give a self-teacher to train")
        if stage == "fit" and self.teacher is not None:
            self.teacher.forget()
        super().setup(stage)

    def term_defaults(self) -> Mapping[str, float]:
        """The self-teacher's weights."""
        return {} if self.teacher is None else {self.teacher.name: 1.0, **self.teacher.default_weights}

    def reads_teacher_logits(self) -> bool:
        """A self-teacher's term reads them."""
        return True

    @property
    def reads_views(self) -> Any:
        """The self-teacher."""
        return self.teacher

    def shown(self, batch: Batch) -> list[Batch]:
        """What the self-teacher wants to be run together."""
        own = None if self.teacher is None else self.teacher.shown(batch)
        return super().shown(batch) if own is None else own

    def own_taps(self, network: str) -> Sequence[str]:
        """Where the exits begin, and what the self-teacher reads besides; prediction has no use for them."""
        if self.teacher is None or not self._reads_taps:
            return ()
        return self.teacher.exit_taps if network == "student" else self.teacher.taps_of_exits

    def build_parts(self, stage: str) -> None:
        """Attaches the exits; prediction needs none."""
        self._reads_taps = self.teacher is not None and len(self.teacher.exit_taps) > 0 and stage != "predict"
        if self.teacher is None or not self._reads_taps:
            return
        with closing(TapReader(self.student, self.teacher.exit_taps)) as reader:
            infos = reader.probe(self.sample_batch(stage).inputs)
        self.teacher.build_exits(infos)
        self.teacher.to(next(self.student.parameters()).device)

    def run_networks(self, batch: Batch) -> dict[str, ModelOutput]:
        """The student, and each exit on the tensor at which it begins."""
        answers = {"student": self._readers["student"](batch.inputs)}
        if self.teacher is not None:
            for number, tap in enumerate(self.teacher.exits, start=1):
                name = f"exit{number}"
                answers[name] = self._readers[name](self.teacher.feature(answers["student"], tap))
        return answers

    def network_inputs(self, network: str, batch: Batch) -> Any:
        """What a network is called with, to take the shapes of its taps."""
        if network == "student" or self.teacher is None:
            return batch.inputs
        tap = list(self.teacher.exits)[int(network.removeprefix("exit")) - 1]
        return next(self.student.parameters()).new_zeros(self.teacher.exit_shape(tap))

    def mode_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """The task's term and the self-teacher's."""
        terms = super().mode_terms(step)
        if self.teacher is not None:
            terms |= self.teacher.terms(step, float(self.current_epoch), lambda name: self.is_active(name, step))
            self.teacher.remember(step)
        return terms

    def scored(self, outputs: dict[str, ModelOutput], batch: Batch, stage: str) -> dict[str, ModelOutput]:
        """The student, its exits, and what they say together."""
        together = None if self.teacher is None else self.teacher.ensemble(outputs)
        return outputs if together is None else {**outputs, "ensemble": together}

    def resting(self, terms: Mapping[str, Tensor]) -> list[nn.Module]:
        """The self-teacher, if it has parameters that learn and none of its terms is there.

        Exits may take the student's answer for a constant: without labels nothing else reads it, and DDP misses it.
        """
        if self.teacher is None:
            return []
        unread: list[nn.Module] = []
        if "task" not in terms and self.teacher.exits and self.trainer.world_size > 1:
            unread = [self.student]
        own = [name for name in self.term_defaults() if name != "task"]
        return unread if any(name in terms for name in own) else [*unread, self.teacher]

    def on_train_start(self) -> None:
        """Tells the self-teacher how many samples there are and where they are."""
        super().on_train_start()
        if self.teacher is not None:
            dataset: Any = getattr(self.trainer.train_dataloader, "dataset", None)
            samples = len(dataset) if hasattr(dataset, "__len__") else 0
            epochs = math.ceil(self._total_epochs) or self.trainer.max_epochs or 1
            self.teacher.start(samples, epochs, self.device)
        self._teacher_epoch = self.current_epoch if self._teacher_epoch is None else self._teacher_epoch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes up for the epoch's end, which Lightning leaves out after a resume from its last batch."""
        super().on_train_batch_start(batch, batch_idx)
        if self._teacher_epoch != self.current_epoch:
            self._end_teacher_epoch(self.current_epoch)

    def after_optimizer_step(self, step: int) -> None:
        """The self-teacher follows."""
        if self.teacher is not None:
            self.teacher.after_optimizer_step(self.student, step)

    def on_train_epoch_end(self) -> None:
        """The epoch becomes the past."""
        super().on_train_epoch_end()
        self._end_teacher_epoch(self.current_epoch + 1)

    def _end_teacher_epoch(self, next_epoch: int) -> None:
        if self.teacher is not None:
            self.teacher.end_epoch()
        self._teacher_epoch = next_epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the epoch in which the self-teacher is."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kdlightning"]["teacher_epoch"] = self._teacher_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it over."""
        super().on_load_checkpoint(checkpoint)
        self._teacher_epoch = checkpoint.get("kdlightning", {}).get("teacher_epoch")

    def teardown(self, stage: str) -> None:
        """See `DistillModule.teardown`; another fit begins its own epochs."""
        super().teardown(stage)
        self._teacher_epoch = None
