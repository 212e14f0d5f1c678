"""Callbacks of the command: what happened in the course of training, and the rows that `predict` writes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class History(Callback):
    """The validation metrics of every epoch and the seconds spent; both survive a resume, in the checkpoint."""

    def __init__(self) -> None:
        self.curves: dict[str, list[list[float]]] = {}
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def state_key(self) -> str:
        """One history a run."""
        return "kdlightning.History"

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"curves": self.curves, "seconds": self.total_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the checkpoint was written."""
        self.curves = {name: [list(point) for point in points] for name, points in state_dict["curves"].items()}
        self.seconds = float(state_dict["seconds"])

    @property
    def total_seconds(self) -> float:
        """Seconds in `fit`, over all its parts."""
        return self.seconds + (time.monotonic() - self._since if self._since is not None else 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._since = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops it."""
        self.seconds, self._since = self.total_seconds, None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point `[epoch, step, value]` to each curve; checkpoints are written after this."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/") and not name.startswith("val/teacher_"):
                point = [float(trainer.current_epoch), float(trainer.global_step), float(value)]
                self.curves.setdefault(name, []).append(point)


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl`, a line for each sample in the samples' order, whole or not at all.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.rows = 0

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts this rank's part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text("", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Adds a batch's rows; samples that the loader does not number are counted."""
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as file:
            for row in prediction or []:
                number = self.rows if row.get("index") is None else row["index"]
                file.write(json.dumps({**row, "index": number}) + "\n")
                self.rows += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the parts of all ranks."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        found: dict[int, str] = {}
        for rank in range(trainer.world_size):
            part = self._part(rank)
            for line in part.read_text(encoding="utf-8").splitlines():
                # Samplers repeat samples so that every rank has as many: the first row counts.
                found.setdefault(json.loads(line)["index"], line)
            part.unlink()
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text("".join(f"{found[number]}\n" for number in sorted(found)), encoding="utf-8")
        beside.replace(self.path)
        self.rows = len(found)
