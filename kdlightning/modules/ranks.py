"""A network of its own on each process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from kdlightning.data.seeding import mix, restored_generators
from kdlightning.errors import ConfigurationError
from kdlightning.models.branches import draw_anew
from kdlightning.models.packed import frozen_copy, network_of_rank, packed, unpack

if TYPE_CHECKING:
    from kdlightning.modules.knowledge import TermSpec
    from kdlightning.modules.online import OnlineDistillation


class RanksMixin:
    """How `OnlineDistillation` trains with a strategy that is `by_rank`.

    DDP is told to leave the student alone. Lightning's checkpoint is rank 0's: what the other ranks hold lies beside it
    and goes back to them on a resume. Evaluation is of rank 0's network, which stands in for each rank's own meanwhile.
    """

    _specs: list[TermSpec]

    def _init_ranks(self: OnlineDistillation) -> None:  # type: ignore[misc]
        self._aside: Tensor | None = None
        self._drawn = False

    def setup(self: OnlineDistillation, stage: str) -> None:  # type: ignore[misc]
        """See `DistillModule.setup`; refuses what would mix the ranks' networks or lose all but one."""
        self._put_back()  # an evaluation before may have been broken off
        if stage == "fit" and self.strategy.by_rank:
            self._refuse_for_ranks()
            self.strategy.copies.clear()
            named = [*self.student.named_parameters(remove_duplicate=False)]
            named += [*self.student.named_buffers(remove_duplicate=False)]  # type: ignore[list-item]
            self._ddp_params_and_buffers_to_ignore = [f"student.{name}" for name, _ in named]
        super().setup(stage)  # type: ignore[misc]

    def _refuse_for_ranks(self: OnlineDistillation) -> None:  # type: ignore[misc]
        name, trainer = type(self.strategy).__name__, self.trainer
        specs, self._specs = self._specs, []
        if trainer.world_size < 2:
            raise ConfigurationError(
                f"{name} trains one network on each process, and there is only one process: start several, for example "
                "with --trainer.devices 2 --trainer.strategy ddp"
            )
        if not isinstance(trainer.strategy, DDPStrategy) or isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ConfigurationError(f"{name} needs --trainer.strategy ddp, not {type(trainer.strategy).__name__}")
        if trainer.strategy._layer_sync is not None:
            raise ConfigurationError(f"{name}: sync_batchnorm would mix the processes' networks: leave it out")
        if specs:
            raise ConfigurationError(
                f"{specs[0].owner} would need the other networks' tensors, and with {name} they are on other "
                "processes: leave the callback out"
            )
        averages = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) or getattr(callback, "averages_weights", False)
        ]
        if averages:
            raise ConfigurationError(
                f"{averages[0]} keeps the average of one network, and {name} trains one on each process: leave it out"
            )

    # -- training --------------------------------------------------------------------------------------------------

    def on_fit_start(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """See `DistillModule.on_fit_start`; ranks other than the first get other initial weights, once."""
        super().on_fit_start()  # type: ignore[misc]
        if not self.strategy.by_rank or self._drawn:
            return
        self._drawn = True
        self.settle_seed()
        # Without a seed each process has built its network with other weights.
        unpack(self.student, network_of_rank(self.student, 0))
        if self.global_rank > 0 and self.strategy.draw_anew:
            with restored_generators(("torch",)):
                torch.default_generator.manual_seed(mix(self._seed or 0, self.global_rank))
                draw_anew(self.student)

    def on_train_start(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """See `DistillModule.on_train_start`; the strategy begins."""
        super().on_train_start()  # type: ignore[misc]
        for copy in self.strategy.copies.values():
            copy.to(self.device)
        self.strategy.start(list(self.networks.values()), self.global_step)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _show_first(self: OnlineDistillation) -> None:  # type: ignore[misc]
        if self.strategy.by_rank and self.trainer.world_size > 1:
            self._aside = packed(self.student)
            unpack(self.student, network_of_rank(self.student, 0))

    def _put_back(self: OnlineDistillation) -> None:  # type: ignore[misc]
        if self._aside is not None:
            unpack(self.student, self._aside)
            self._aside = None

    def on_validation_start(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """See `DistillModule.on_validation_start`; rank 0's network is shown."""
        super().on_validation_start()  # type: ignore[misc]
        self._show_first()

    def on_validation_epoch_end(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """Logs `val/…`; each rank has its own network back before checkpoints are written."""
        super().on_validation_epoch_end()  # type: ignore[misc]
        self._put_back()

    def on_test_start(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """See `DistillModule.on_test_start`; rank 0's network is shown."""
        super().on_test_start()  # type: ignore[misc]
        self._show_first()

    def on_test_epoch_end(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """Logs `test/…`; each rank has its own network back."""
        super().on_test_epoch_end()  # type: ignore[misc]
        self._put_back()

    def on_predict_start(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """Rank 0's network is shown."""
        super().on_predict_start()  # type: ignore[misc]
        self._show_first()

    def on_predict_end(self: OnlineDistillation) -> None:  # type: ignore[misc]
        """Each rank has its own network back."""
        super().on_predict_end()  # type: ignore[misc]
        self._put_back()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self: OnlineDistillation, checkpoint: dict[str, Any]) -> None:  # type: ignore[misc]
        """Rank 0 collects what the others hold; all ranks come here."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if not self.strategy.by_rank or not torch.distributed.is_initialized():
            return
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        # Every network's copy is held by all other ranks: each gives that of the next one.
        copy = self.strategy.copies.get((rank + 1) % processes)
        mine: dict[str, Any] = {"copy": None if copy is None else dict(copy.state_dict())}
        if rank > 0:
            mine["student"] = dict(self.student.state_dict())
            mine |= {name: checkpoint[name] for name in self._own_entries() if name in checkpoint}
        found: list[Any] | None = [None] * processes if rank == 0 else None
        torch.distributed.gather_object(move_data_to_device(mine, torch.device("cpu")), found, dst=0)
        checkpoint["kdlightning"]["ranks"] = found

    def _own_entries(self: OnlineDistillation) -> tuple[str, ...]:  # type: ignore[misc]
        """What of Lightning's checkpoint differs between ranks: optimizers, and the scale of half-precision losses."""
        return "optimizer_states", type(self.trainer.precision_plugin).__qualname__

    def on_load_checkpoint(self: OnlineDistillation, checkpoint: dict[str, Any]) -> None:  # type: ignore[misc]
        """Puts this rank's own in the place of rank 0's, if training goes on."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        self._drawn = True
        if not self.strategy.by_rank or self._trainer is None or self.trainer.state.fn != "fit":
            return
        kept, rank, processes = checkpoint["kdlightning"].get("ranks") or [], self.global_rank, self.trainer.world_size
        if len(kept) != processes:
            raise ConfigurationError(
                f"the checkpoint holds the networks of {len(kept)} processes and this run has {processes}: start as "
                "many as before"
            )
        if rank > 0:
            checkpoint["state_dict"] |= {f"student.{name}": v for name, v in kept[rank]["student"].items()}
            checkpoint |= {name: kept[rank][name] for name in self._own_entries() if name in kept[rank]}
        for other in range(processes):
            state = kept[other - 1]["copy"]
            if other != rank and state is not None:
                self.strategy.copies[other] = frozen_copy(self.student)
                self.strategy.copies[other].load_state_dict(state)
