"""Which classes the student takes for which, as a picture."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.classification import MulticlassConfusionMatrix

from kdlightning.errors import ConfigurationError


class ConfusionMatrix(pl.Callback):
    """Writes the student's confusion matrix on the validation set to TensorBoard, at the end of training.

    Needs a classification task and a TensorBoard logger; without the latter it does nothing.

    Args:
        normalize: "true" gives shares of each true class, None counts.
    """

    def __init__(self, normalize: str | None = "true") -> None:
        if normalize not in ("true", "pred", "all", None):
            raise ConfigurationError(f"ConfusionMatrix: normalize must be true, pred, all or null, not {normalize!r}")
        self.normalize = normalize
        self.matrix: MulticlassConfusionMatrix | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Asks the module to keep each batch's answers."""
        task = getattr(pl_module, "task", None)
        if getattr(task, "num_classes", None) is None or task.monitor != "val/acc":  # type: ignore[union-attr]
            raise ConfigurationError(f"ConfusionMatrix needs a task with one class a sample, not {type(task).__name__}")
        pl_module.keep_last_step = True  # type: ignore[assignment]
        self.matrix = MulticlassConfusionMatrix(task.num_classes, normalize=self.normalize)  # type: ignore[union-attr, arg-type]

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts anew."""
        assert self.matrix is not None
        self.matrix.to(pl_module.device).reset()

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
        step: Any = pl_module.last_step
        assert self.matrix is not None
        target = step.batch.target
        target = target.argmax(dim=1) if target.is_floating_point() else target
        self.matrix.update(step.student.logits.argmax(dim=1), target)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last validation's matrix."""
        assert self.matrix is not None
        if not self.matrix.update_called:
            return
        # Computing gathers over ranks, so every rank takes part; only the first one draws.
        values = self.matrix.compute()
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        from matplotlib import pyplot

        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        labels = [str(name) for name in names] if names and len(names) <= 50 else None
        figure, axes = pyplot.subplots(figsize=(6, 6))
        self.matrix.plot(values, ax=axes, add_text=len(values) <= 20, labels=labels)
        axes.set_title("validation")
        figure.tight_layout()
        logger.experiment.add_figure("val/confusion_matrix", figure, global_step=trainer.global_step)
        pyplot.close(figure)
