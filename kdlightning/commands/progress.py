"""Progress that reads well in a terminal and in a plain log."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from kdlightning.commands.words import duration, metric_words


class Progress(ProgressBar):
    """A line at each epoch's end; between them a terminal shows a line that moves, a plain log one now and then.

    Args:
        seconds: least time between two epoch lines in a plain log; the first and the last epoch are always written.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._on = True
        self._started = self._written = self._moved = time.monotonic()
        self._first_epoch = 0
        self._line_epoch = -1
        self._open = False

    def disable(self) -> None:
        """Writes nothing from now on; Lightning calls it on all ranks but the first."""
        self._on = False

    def enable(self) -> None:
        """Writes again."""
        self._on = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """A line of somebody else's."""
        self._line(sep.join(str(arg) for arg in args))

    # -- fit -------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = self._moved = time.monotonic()
        self._written = float("-inf")
        self._first_epoch, self._line_epoch = trainer.current_epoch, -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the line of a terminal, or writes one to a log that has been silent for long."""
        now = time.monotonic()
        if now - self._moved < (0.1 if sys.stdout.isatty() else 15.0):
            return
        self._moved = now
        self._move(f"{self._place(trainer)}  batch {batch_idx + 1}/{_count(trainer.num_training_batches)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's line."""
        now = time.monotonic()
        done = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if sys.stdout.isatty() or done or now - self._written >= self.seconds:
            self._epoch_line(trainer)
            self._written = self._moved = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last epoch's line if it was left out."""
        if self._line_epoch != trainer.current_epoch - 1 and trainer.current_epoch > self._first_epoch:
            self._epoch_line(trainer, trainer.current_epoch - 1)

    def _epoch_line(self, trainer: Trainer, epoch: int | None = None) -> None:
        self._line_epoch = trainer.current_epoch if epoch is None else epoch
        done = self._line_epoch + 1 - self._first_epoch
        spent = time.monotonic() - self._started
        left = ""
        if trainer.max_epochs and trainer.max_epochs > 0:
            left = f", {duration(spent / max(done, 1) * (trainer.max_epochs - self._line_epoch - 1))} left"
        numbers = "  ".join(metric_words(trainer.callback_metrics))
        parts = [self._place(trainer, self._line_epoch), numbers, f"{duration(spent)}{left}"]
        self._line("  ".join(part for part in parts if part))

    def _place(self, trainer: Trainer, epoch: int | None = None) -> str:
        number = (trainer.current_epoch if epoch is None else epoch) + 1
        return f"epoch {number}/{_count(trainer.max_epochs)}"

    # -- evaluation ------------------------------------------------------------------------------------------------

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Moves the line."""
        self._evaluating("test", args, trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Moves the line."""
        self._evaluating("predict", args, trainer.num_predict_batches)

    def _evaluating(self, what: str, arguments: tuple[Any, ...], batches: Any) -> None:
        now = time.monotonic()
        if now - self._moved >= (0.1 if sys.stdout.isatty() else 15.0):
            self._moved = now
            total = batches[0] if isinstance(batches, list) and batches else batches
            self._move(f"{what}  batch {arguments[3] + 1}/{_count(total)}")

    # -- writing ---------------------------------------------------------------------------------------------------

    def _move(self, text: str) -> None:
        if not self._on:
            return
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{text}", end="", flush=True)
            self._open = True
        else:
            print(text, flush=True)

    def _line(self, text: str) -> None:
        if not self._on:
            return
        print(f"\r\x1b[2K{text}" if self._open else text, flush=True)
        self._open = False


def _count(value: Any) -> str:
    return str(int(value)) if value not in (None, -1, float("inf")) else "?"
