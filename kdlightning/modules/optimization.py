"""Optimizers, gradients, and the shared denominator of language-model losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import DistillationLoss
from kdlightning.modules.vocabularies import keep_tokenizer

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule


_TOKEN_SCALE = 1024.0
"""The same in every run and on every rank, and a power of two, so that it leaves no trace in a gradient's digits."""


class OptimizationMixin:
    """What `DistillModule` does around the optimizer."""

    def _init_optimization(self: DistillModule) -> None:  # type: ignore[misc]
        self._window_tokens: Tensor | None = None
        self._loaded_terms: set[str] = set()
        self._loaded_averages = False

    def configure_optimizers(self: DistillModule) -> Any:  # type: ignore[misc]
        """One optimizer over everything that requires grad, and its scheduler."""
        groups = self.parameter_groups()
        optimizer = torch.optim.AdamW(groups, lr=1e-3) if self._make_optimizer is None else self._make_optimizer(groups)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        options: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            options["monitor"] = self._plateau_monitor(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": options}

    def _plateau_monitor(self: DistillModule, scheduler: Any) -> str:  # type: ignore[misc]
        """What a plateau is judged by: the task's monitor if the scheduler's mode is its own, else the loss."""
        task = self.task
        monitor = getattr(scheduler, "monitor", None)
        if monitor is None:
            own = scheduler.mode == task.monitor_mode or not task.has_loss
            monitor = task.monitor if own else "val/loss"
        better = {task.monitor: task.monitor_mode, "val/loss": "min"}.get(monitor, scheduler.mode)
        if scheduler.mode != better:
            raise ConfigurationError(
                f"ReduceLROnPlateau: {monitor} is better the {'higher' if better == 'max' else 'lower'}, and mode is "
                f"{scheduler.mode!r}: set mode: {better}"
            )
        return monitor

    def parameter_groups(self: DistillModule) -> Any:  # type: ignore[misc]
        """What the optimizer gets: student, adapters, loss networks, whatever requires grad. Never a frozen teacher."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def scaled_for_tokens(  # type: ignore[misc]
        self: DistillModule, total: Tensor, count: Tensor | None, batch: Batch
    ) -> Tensor:
        """Counts a micro-batch's tokens into the window; the loss is a sum, kept at a sane size by a constant."""
        if count is None:
            return total
        tokens = torch.as_tensor(self.task.count(batch), device=total.device)
        self._window_tokens = tokens if self._window_tokens is None else self._window_tokens + tokens
        return total / _TOKEN_SCALE

    def on_before_optimizer_step(self: DistillModule, optimizer: Any) -> None:  # type: ignore[misc]
        """Divides the gradient once by the tokens of the whole window on all ranks; runs before clipping."""
        if self._window_tokens is None:
            return
        tokens = self._window_tokens
        self._window_tokens = None
        world = self.trainer.world_size
        if world > 1:
            tokens = tokens.clone()
            torch.distributed.all_reduce(tokens)
        factor = self.trainer.accumulate_grad_batches * world * _TOKEN_SCALE / tokens.clamp(min=1).float()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(factor)

    def optimizer_step(self: DistillModule, *args: Any, **options: Any) -> None:  # type: ignore[misc]
        """Tells losses and self-teachers of each optimizer step, before any checkpoint of it is written."""
        self.take_step(*args, **options)
        step = self.global_step + 1  # the Trainer counts a step once this method is over
        progress = min(step / self._total_steps, 1.0) if self._total_steps else 0.0
        for part in self._followers:
            part.after_optimizer_step(progress)
        self.after_optimizer_step(step)

    def take_step(self: DistillModule, *args: Any, **options: Any) -> None:  # type: ignore[misc]
        """The optimizer step itself, in Lightning's way."""
        super().optimizer_step(*args, **options)  # type: ignore[misc]

    def after_optimizer_step(self: DistillModule, step: int) -> None:  # type: ignore[misc]
        """Called after each optimizer step, counted from 1."""

    def on_fit_start(self: DistillModule) -> None:  # type: ignore[misc]
        """Finds losses that want to know of optimizer steps, moves a frozen teacher, keeps the data's tokenizer."""
        self._followers = [
            module
            for module in self.modules()
            if isinstance(module, DistillationLoss)
            and type(module).after_optimizer_step is not DistillationLoss.after_optimizer_step
        ]
        if self.teacher is not None:
            self.teacher.to(self.device)
        self._refuse_missing_callbacks()
        keep_tokenizer(self)

    def _refuse_missing_callbacks(self: DistillModule) -> None:  # type: ignore[misc]
        averaged = any(getattr(c, "averages_weights", False) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if self._loaded_averages and not averaged and self.trainer.ckpt_path is not None:
            raise ConfigurationError(
                "the checkpoint holds averaged weights, and no EMA callback goes on averaging: add "
                "kdlightning.callbacks.EMA, or start without --ckpt_path from the exported student"
            )
        # Outside a resumed run nothing is missing: a loaded student may go on without its old callbacks.
        missing = (self._loaded_terms - {term.key for term in self._knowledge}) | self.adapters.ignored
        if missing and self.trainer.ckpt_path is not None:
            raise ConfigurationError(
                f"the checkpoint's run had the term(s) {', '.join(sorted(missing))}, and no callback declares them: "
                "add the knowledge callback(s) of that name, or start without --ckpt_path from the exported student"
            )
