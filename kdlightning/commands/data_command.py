"""The data of a configuration alone, read as `fit` reads them: no network, no Trainer, no run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from kdlightning.commands.lightning_command import DistillCommand


class DataCommand(DistillCommand):
    """Parses what `fit` parses, and builds the DataModule alone; the model may be left out."""

    datamodule: LightningDataModule

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, model and data, as for `fit`, but for a model that is not needed."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_lightning_class_args(
            self._model_class, "model", subclass_mode=self.subclass_mode_model, required=False
        )
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=self.subclass_mode_data)

    def instantiate_classes(self) -> None:
        """Builds the data."""
        command = self.request.command
        settings: Any = self.config[command].clone()
        for part in ("model", "trainer"):
            settings.pop(part, None)
        self.datamodule = self._parser(command).instantiate_classes(settings)["data"]
