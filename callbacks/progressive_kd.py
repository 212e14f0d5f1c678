"""Knowledge of transformers' layers, one layer after the other."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import nn

from kdlightning.callbacks.layer_kd import LayerKD
from kdlightning.errors import ConfigurationError
from kdlightning.losses.feature.mobilebert_transfer import MobileBERTTransfer
from kdlightning.schedules import Weight
from kdlightning.taps.layers import parameters_below


class ProgressiveKD(LayerKD):
    """`LayerKD` of a student whose layers learn one after the other, while those below keep still.

    In the stage of a layer nothing below it is updated: embeddings and lower layers lose their gradients before the
    optimizer's step, those of other terms included. In the first stage the embeddings learn with the layer (the paper
    copies them from the teacher), and after the stages everything learns. See `MobileBERTTransfer`.

    The stages depend on the run's progress alone, so a resumed run is in the stage of the undisturbed one. Layers that
    have no loss yet get no gradient: DDP needs `strategy: ddp_find_unused_parameters_true`.

    Example:
        >>> from kdlightning.callbacks import ProgressiveKD
        >>> from kdlightning.losses import MobileBERTTransfer
        >>> ProgressiveKD(MobileBERTTransfer(until=0.5)).name
        'mobile_bert_transfer'

    Args:
        loss: the loss; it tells the stages.
        layers: see `LayerKD`; the student's layers are trained in this order, so they must rise.
        freeze: False lets the layers below learn on; only the loss goes from layer to layer then.
        weight: number or schedule; None leaves it to the module's `weights` (1 by default).
        name: name of the term; the loss's in snake case by default.
    """

    def __init__(
        self,
        loss: MobileBERTTransfer,
        layers: str | list[int] | dict[int, int] | None = None,
        freeze: bool = True,
        weight: Weight | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(loss, MobileBERTTransfer):
            raise ConfigurationError(f"ProgressiveKD: loss must be MobileBERTTransfer(), not {type(loss).__name__}")
        super().__init__(loss, layers, None, weight, name)
        self.freeze = freeze
        self._below: list[list[list[nn.Parameter]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes what lies below each layer that learns, of the student and of peers."""
        self._below = []
        for network in pl_module.networks.values():  # type: ignore[union-attr, operator]
            numbers = self.layers.of_student(network)
            if numbers != sorted(set(numbers)):
                raise ConfigurationError(f"ProgressiveKD({self.name}): name the student's layers from the lowest up")
            # The embeddings learn with the first layer: no loss of their own comes before.
            self._below.append([[], *(parameters_below(network, number) for number in numbers[1:])])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Takes the gradients of what lies below the layer whose stage it is."""
        if not self.freeze:
            return
        progress: float = pl_module.progress  # type: ignore[assignment]
        for below in self._below:
            stage = self.loss.stage(progress, len(below))  # type: ignore[operator]
            for parameter in [] if stage is None else below[stage]:
                parameter.grad = None
