"""The two checkpoints of every run: the best by the task's monitor, and the newest to resume from."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from kdlightning.errors import ConfigurationError


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the best so far by the task's monitor.

    Args:
        monitor: metric to judge by; the task's own by default, for example `val/acc`.
        mode: "max" or "min"; the task's own by default. Needed with a monitor of one's own.
        dirpath: folder; `checkpoints` in the run's folder by default.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, dirpath: str | None = None) -> None:
        if (monitor is None) != (mode is None):
            raise ConfigurationError("BestCheckpoint: give monitor and mode together, or neither")
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor or "val/loss",
            mode=mode or "min",
            save_top_k=1,
            enable_version_counter=False,
        )
        self._own_monitor = monitor is not None

    @property
    def state_key(self) -> str:
        """One best checkpoint a run."""
        return "BestCheckpoint"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the monitor from the task."""
        task = getattr(pl_module, "task", None)
        if not self._own_monitor and task is not None:
            self.monitor = task.monitor
            self._ModelCheckpoint__init_monitor_mode(task.monitor_mode)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)

    def _should_save_on_train_epoch_end(self, trainer: pl.Trainer) -> bool:
        # Without validation data there is nothing to judge by; Lightning would warn in every epoch.
        batches = trainer.num_val_batches
        judged = sum(batches if isinstance(batches, list) else [batches]) > 0 or not str(self.monitor).startswith(
            "val/"
        )
        return judged and super()._should_save_on_train_epoch_end(trainer)


class LatestCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, written every so many steps and at the end of each epoch: `--ckpt_path last` resumes from it.

    Args:
        every_n_train_steps: optimizer steps between two writes within an epoch.
        dirpath: folder; `checkpoints` in the run's folder by default.
    """

    def __init__(self, every_n_train_steps: int = 500, dirpath: str | None = None) -> None:
        if every_n_train_steps < 1:
            raise ConfigurationError("LatestCheckpoint: every_n_train_steps must be at least 1")
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_top_k=1,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """One latest checkpoint a run."""
        return "LatestCheckpoint"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes after the epoch, when every callback has seen its end."""
        if trainer.global_step != self._last_global_step_saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes every so many steps, but not in the epoch's last one: the epoch's end writes then."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes anew what was written just before a validation in mid-epoch: a resumed run does not repeat it, and it
        may have changed something, such as when to stop or the weights of KDCL."""
        written = trainer.global_step == self._last_global_step_saved
        if written and trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
