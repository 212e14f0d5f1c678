"""Weights that change during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdlightning.errors import ConfigurationError

Unit = Literal["progress", "epochs"]


class Schedule:
    """Base: the weight at a moment of training."""

    def __call__(self, progress: float, epoch: float) -> float:
        """The weight.

        Args:
            progress: optimizer steps done / total steps, 0 to 1.
            epoch: the same moment in epochs, fractional.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(progress, epoch)")


@dataclass
class _Ramp(Schedule):
    """From `start` to `end` while the moment goes from `begin` to `until`, constant outside."""

    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0
    unit: Unit = "progress"

    def __post_init__(self) -> None:
        if self.until <= self.begin:
            raise ConfigurationError(f"{type(self).__name__}: until={self.until} must be later than begin={self.begin}")

    def __call__(self, progress: float, epoch: float) -> float:
        moment = progress if self.unit == "progress" else epoch
        share = min(max((moment - self.begin) / (self.until - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * self.shape(share)

    def shape(self, share: float) -> float:
        return share


@dataclass
class LinearSchedule(_Ramp):
    """A straight line. `LinearSchedule(0, 1, until=20, unit="epochs")` is DKD's warm-up."""


@dataclass
class CosineSchedule(_Ramp):
    """Half a cosine."""

    def shape(self, share: float) -> float:
        return (1 - math.cos(math.pi * share)) / 2


@dataclass
class SigmoidRampUp(_Ramp):
    """exp(-5 (1 - share)²), the ramp of mean teachers and ONE (Laine & Aila, 2017)."""

    def shape(self, share: float) -> float:
        return math.exp(-5 * (1 - share) ** 2)


@dataclass
class StepSchedule(Schedule):
    """`before` until the moment `at`, `after` from then on.

    Two of them make two stages of one run: with `StepSchedule(0, 1, at=0.125)` for one term and
    `StepSchedule(1, 0, at=0.125)` for another, the other alone is trained in the first eighth.

    Args:
        before: the weight in the beginning.
        after: the weight from `at` on.
        at: the moment, as a share of the run's optimizer steps (0 to 1) or in epochs.
        unit: whether `at` counts "progress" or "epochs".
    """

    before: float
    after: float
    at: float
    unit: Unit = "progress"

    def __post_init__(self) -> None:
        if self.at < 0 or (self.unit == "progress" and self.at > 1):
            raise ConfigurationError(
                f"StepSchedule: at={self.at} lies outside the run: give a share of it, from 0 to 1, or a number of "
                "epochs with unit: epochs"
            )

    def __call__(self, progress: float, epoch: float) -> float:
        moment = progress if self.unit == "progress" else epoch
        return self.before if moment < self.at else self.after


Weight = float | Schedule


def weight_at(weight: Weight, progress: float, epoch: float) -> float:
    """The value of a number or schedule at a moment."""
    return weight(progress, epoch) if isinstance(weight, Schedule) else float(weight)
