"""An average of the weights over training, which is what is validated, saved and exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError

_TRAINED = "weights_in_training"


class EMA(pl.Callback):
    """Exponential moving average of the weights of all networks that learn: θ' ← α·θ' + (1−α)·θ after each step.

    Validation, checkpoints, and so test, prediction and export, see the average; training goes on with the weights
    themselves, which checkpoints hold beside it for a resume. Buffers (batch-norm statistics) are those of training.
    The average is true from the first step on: α_k = min(decay, 1 − 1/(k+1)). Adapters, loss networks and teachers are
    not averaged. Lightning's own averaging copies the module before its adapters exist; this callback may stand
    anywhere in the list.

    Args:
        decay: α, at least 0 and below 1.
    """

    averages_weights = True
    """Told to the module: a checkpoint of this run holds averages."""

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"EMA: decay must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._aside: dict[str, Tensor] | None = None
        self._seen_step = 0
        self._weights: list[Tensor] = []

    @property
    def state_key(self) -> str:
        """One average a run."""
        return "EMA"

    def state_dict(self) -> dict[str, Any]:
        """How many steps are in the average."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.updates = int(state_dict["updates"])

    # -- averaging -------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses weights that are split over ranks; forgets an earlier fit."""
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            raise ConfigurationError("EMA averages whole weights: use it with ddp or one device, not with sharding")
        if stage == "fit":
            self.average, self.updates, self._aside = {}, 0, None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins with the weights as they are, unless a checkpoint brought an average."""
        self._weights = [parameter.detach() for _, parameter in learning(pl_module)]
        for name, parameter in learning(pl_module):
            known = self.average.get(name, parameter)
            self.average[name] = known.detach().to(parameter.device, copy=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts steps from here: only now a resumed run says how many it has made."""
        self._seen_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average, if the optimizer has made a step."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self.updates += 1
        rate = 1 - min(self.decay, 1 - 1 / (self.updates + 1))
        torch._foreach_lerp_(list(self.average.values()), self._weights, rate)

    # -- what others see -------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validates the average."""
        if self.average and trainer.state.fn == "fit":
            self._aside = _exchange(pl_module, self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the weights in training back."""
        self._put_back(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Puts them back, wherever the run broke off."""
        self._put_back(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module ends with the average."""
        _exchange(pl_module, self.average)

    def _put_back(self, pl_module: pl.LightningModule) -> None:
        if self._aside is not None:
            _exchange(pl_module, self._aside)
            self._aside = None

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average is the state of the networks; the weights in training lie beside it."""
        state = checkpoint["state_dict"]
        trained = self._aside if self._aside is not None else dict(learning(pl_module))
        checkpoint[_TRAINED] = {name: value.detach().clone() for name, value in trained.items()}
        for name, value in self.average.items():
            state[name] = value.clone()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes both over; the module has just loaded the average."""
        if trainer.state.fn != "fit" or _TRAINED not in checkpoint:
            return
        self.average = _exchange(pl_module, checkpoint[_TRAINED])


def learning(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all networks that learn, by their names in the module."""
    networks = getattr(module, "networks", None)
    if networks is None:
        raise ConfigurationError(f"EMA needs a DistillModule, not {type(module).__name__}")
    own = {id(parameter) for network in networks.values() for parameter in network.parameters()}
    return ((name, p) for name, p in module.named_parameters() if id(p) in own and p.requires_grad)


@torch.no_grad()
def _exchange(module: pl.LightningModule, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Writes values into the learning parameters, and gives what was there."""
    before = {}
    for name, parameter in learning(module):
        before[name] = parameter.detach().clone()
        parameter.copy_(values[name])
    return before
