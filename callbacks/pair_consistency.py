"""Whether a classifier is right on an original and on its counterfactual."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from kdlightning.errors import ConfigurationError
from kdlightning.metrics import PairScores


class PairConsistency(pl.Callback):
    """Logs `consistency` and `sensitivity` of the student on counterfactual pairs, in validation and test.

    Reads which rows belong together from the DataModule's `pairs(part)`: `TextClassification` with a `pair_field`, or
    `CounterfactualData`. See `kdlightning.metrics.PairScores`.
    """

    def __init__(self) -> None:
        self._scores: dict[str, PairScores] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Asks the module to keep each batch's answers."""
        task = getattr(pl_module, "task", None)
        if getattr(task, "num_classes", None) is None or task.monitor != "val/acc":  # type: ignore[union-attr]
            raise ConfigurationError(f"PairConsistency needs a task with one class a sample, not {type(task).__name__}")
        if getattr(_data(trainer), "pair_field", None) is None:
            raise ConfigurationError(
                "PairConsistency needs data with pairs: TextClassification(pair_field=…) or CounterfactualData"
            )
        pl_module.keep_last_step = True  # type: ignore[assignment]
        self._scores = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module, "val")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module, "test")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs `val/consistency` and `val/sensitivity`."""
        self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs `test/consistency` and `test/sensitivity`."""
        self._report(trainer, pl_module, "test")

    def _count(self, trainer: pl.Trainer, module: pl.LightningModule, part: str) -> None:
        step: Any = module.last_step
        index: Tensor = step.batch.index
        pair = _data(trainer).pairs(part)[index.cpu()].to(index.device)
        scores = self._scores.setdefault(part, PairScores().to(module.device))
        scores.update(pair, index, step.student.logits.float().softmax(dim=1), step.batch.target)

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, part: str) -> None:
        scores = self._scores.pop(part, None)
        if scores is not None and not trainer.sanity_checking:
            # Every process has the scores of all of them.
            named = {f"{part}/{name}": value for name, value in scores.compute().items()}
            module.log_dict(named, sync_dist=trainer.world_size > 1)


def _data(trainer: pl.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
