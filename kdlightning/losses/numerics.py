"""Precision and stability shared by the losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

LOWEST = -1e30
"""Stands for log 0: finite, so that 0·log 0 is 0 and not NaN."""


def widened(value: Any) -> Any:
    """Half-precision tensors as float32, those in lists and tuples too; everything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(widened(item) for item in value)
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a loss in float32 or better: half-precision arguments are widened and autocast is off inside.

    Without this, autocast would turn the matrix products of relations and heads into bfloat16 ones.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        wide_args = [widened(value) for value in args]
        wide_kwargs = {name: widened(value) for name, value in kwargs.items()}
        values = (*args, *kwargs.values())
        device = _device_type(values)
        if device is None or not torch.is_autocast_enabled(device):
            return function(*wide_args, **wide_kwargs)  # type: ignore[arg-type]
        with torch.autocast(device, enabled=False):
            return function(*wide_args, **wide_kwargs)  # type: ignore[arg-type]

    return wrapper


def _device_type(values: Any) -> str | None:
    """Where the first tensor lies, also if it is in a list."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)) and (found := _device_type(value)) is not None:
            return found
    return None


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, never below -1e30 (so logits of -inf are allowed)."""
    if temperature != 1.0:
        logits = logits / temperature
    return logits.log_softmax(-1).clamp(min=LOWEST)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the option is above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")


def check_share(name: str, value: float, *, one_allowed: bool = True) -> None:
    """Raises ValueError unless the option lies in [0, 1], or in [0, 1)."""
    if not 0 <= value <= 1 or (value == 1 and not one_allowed):
        raise ValueError(f"{name} must lie between 0 and 1{'' if one_allowed else ' (1 excluded)'}, not {value}")
