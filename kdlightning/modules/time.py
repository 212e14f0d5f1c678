"""How far a run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdlightning.errors import ConfigurationError

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule


class TimeMixin:
    """What `DistillModule` knows of the length of its run, for schedules."""

    def _init_time(self: DistillModule) -> None:  # type: ignore[misc]
        self._total_steps = 0
        self._total_epochs = 0.0

    @property
    def progress(self: DistillModule) -> float:  # type: ignore[misc]
        """Optimizer steps done / total steps, 0 to 1; 0 if the total is not known."""
        return min(self.global_step / self._total_steps, 1.0) if self._total_steps else 0.0

    def epoch_at(self: DistillModule, progress: float) -> float:  # type: ignore[misc]
        """The moment in epochs."""
        return progress * self._total_epochs if self._total_epochs else float(self.current_epoch)

    def _measure_run(self: DistillModule) -> None:  # type: ignore[misc]
        """Steps and epochs of the whole run: whichever of max_steps and max_epochs ends it."""
        steps, batches = self.trainer.estimated_stepping_batches, self.trainer.num_training_batches
        self._total_steps = int(steps) if 0 < steps < float("inf") else 0
        if self._total_steps and 0 < batches < float("inf"):
            self._total_epochs = self._total_steps / -(-int(batches) // self.trainer.accumulate_grad_batches)
        else:
            self._total_epochs = 0.0
        if not self._total_steps and any(getattr(w, "unit", "") == "progress" for w in self._weights.values()):
            raise ConfigurationError(
                "a weight's schedule counts progress, and a loader without length does not say how long the run is: "
                "set trainer.max_steps, or unit: epochs on the schedule"
            )
