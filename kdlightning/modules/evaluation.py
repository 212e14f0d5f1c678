"""Validation, test and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models.output import ModelOutput
from kdlightning.modules.memory import LogitMemory
from kdlightning.modules.scoreboard import Scoreboard
from kdlightning.modules.step import DistillStep

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule


class EvaluationMixin:
    """How `DistillModule` scores its networks: `val/acc`, `val/teacher_acc`, `val/agreement`, ….

    A frozen teacher is asked once: its scores, and its logits by sample number, are kept after the first full pass.
    """

    last_step: DistillStep | None

    def _init_evaluation(self: DistillModule) -> None:  # type: ignore[misc]
        self._boards: dict[str, Scoreboard] = {}
        self._memories: dict[str, LogitMemory] = {}
        self._teacher_scores: dict[str, dict[str, Any]] = {}

    def _forget_scores(self: DistillModule) -> None:  # type: ignore[misc]
        """Each fit, validation or test may have data of its own, and the one before may have been broken off."""
        self._boards.clear()
        self._memories.clear()
        self._teacher_scores.clear()

    def validation_step(self: DistillModule, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[misc]
        """Scores a batch."""
        self.evaluate(self.task.batch(raw), "val")

    def test_step(self: DistillModule, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[misc]
        """Scores a batch."""
        self.evaluate(self.task.batch(raw), "test")

    def predict_step(self: DistillModule, raw: Any, batch_idx: int) -> list[dict[str, Any]]:  # type: ignore[misc]
        """One dictionary a sample: index, prediction, probability, target."""
        batch = self.task.batch(raw)
        rows = self.task.predict(self._readers["student"](batch.inputs), batch)
        numbers = [None] * len(rows) if batch.index is None else batch.index.tolist()
        return [{"index": number, **row} for number, row in zip(numbers, rows, strict=True)]

    def evaluate(self: DistillModule, batch: Batch, stage: str) -> None:  # type: ignore[misc]
        """Scores all networks on a batch."""
        outputs = self.run_networks(batch)
        for name, output in self.scored(outputs, batch, stage).items():
            self.board(name).add(output, batch)
        answer = self._score_teacher(batch, outputs["student"], stage)
        if self.keep_last_step:
            progress = self.progress
            self.last_step = DistillStep.of(
                batch, outputs, answer, progress=progress, epoch=self.epoch_at(progress), stage=stage
            )

    def _score_teacher(  # type: ignore[misc]
        self: DistillModule, batch: Batch, student: ModelOutput, stage: str
    ) -> ModelOutput | None:
        if self.teacher is None or not {"logits", "head"} & self.teacher.provides:
            return None
        answer = self._teacher_answer(batch, student, stage)
        if stage not in self._teacher_scores:
            self.board("teacher").add(answer, batch)
        if self.task.comparable(student, answer):
            self.board("comparison").compare(student, answer, batch)
        return answer

    def scored(  # type: ignore[misc]
        self: DistillModule, outputs: dict[str, ModelOutput], batch: Batch, stage: str
    ) -> dict[str, ModelOutput]:
        """The answers that get a row of metrics each."""
        return outputs

    def board(self: DistillModule, name: str) -> Scoreboard:  # type: ignore[misc]
        """The scores of one network, made on first use. Kept outside the module tree: they are no state of the "
        "model."""
        if name not in self._boards:
            kind = "comparison" if name == "comparison" else "scores"
            self._boards[name] = Scoreboard(self.task, kind).to(self.device)
        return self._boards[name]

    def _teacher_answer(  # type: ignore[misc]
        self: DistillModule, batch: Batch, student: ModelOutput, stage: str
    ) -> ModelOutput:
        assert self.teacher is not None
        remembers = self.teacher.constant and not self.task.counts_tokens
        memory = self._memories.setdefault(stage, LogitMemory())
        logits = memory.look_up(batch.index) if remembers else None
        if logits is not None:
            return ModelOutput(logits)
        answer = self.teacher(batch, student)
        if remembers and answer.has_logits and not self.trainer.sanity_checking:
            memory.add(batch.index, answer.logits)
        return answer

    def on_validation_epoch_end(self: DistillModule) -> None:  # type: ignore[misc]
        """Logs `val/…`."""
        self._report("val")

    def on_test_epoch_end(self: DistillModule) -> None:  # type: ignore[misc]
        """Logs `test/…`."""
        self._report("test")

    def _report(self: DistillModule, stage: str) -> None:  # type: ignore[misc]
        values: dict[str, Any] = {}
        for name, board in self._boards.items():
            values |= board.report(_namer(stage, name))
        if self.trainer.sanity_checking:
            return
        if self.teacher is not None and self.teacher.constant:
            mine = {name: value for name, value in values.items() if name.startswith(f"{stage}/teacher_")}
            self._teacher_scores.setdefault(stage, mine)
            values |= self._teacher_scores[stage]
            if stage in self._memories:
                self._memories[stage].finish()
        self.log_dict(values, sync_dist=self.trainer.world_size > 1)

    def on_validation_start(self: DistillModule) -> None:  # type: ignore[misc]
        """Moves a frozen teacher, which Lightning does not see, to the device; refuses several loaders."""
        _one_loader(self.trainer.num_sanity_val_batches or self.trainer.num_val_batches, "validation")
        self._move_teacher()

    def on_test_start(self: DistillModule) -> None:  # type: ignore[misc]
        """Moves a frozen teacher to the device; refuses several loaders."""
        _one_loader(self.trainer.num_test_batches, "test")
        self._move_teacher()

    def _move_teacher(self: DistillModule) -> None:  # type: ignore[misc]
        if self.teacher is not None and isinstance(self.teacher, nn.Module):
            self.teacher.to(self.device)
        for board in self._boards.values():
            board.to(torch.device(self.device))


def _one_loader(batches: Any, stage: str) -> None:
    if isinstance(batches, list) and len(batches) > 1:
        raise ConfigurationError(
            f"there are {len(batches)} {stage} loaders, and metrics have one name each: give one loader, and measure "
            "the others by a validate or test of their own"
        )


def _namer(stage: str, board: str) -> Any:
    def name(metric: str) -> str:
        if board == "teacher":
            return f"{stage}/teacher_{metric}"
        return f"{stage}/{metric}" if board in ("student", "comparison") else f"{stage}/{metric}_{board}"

    return name
