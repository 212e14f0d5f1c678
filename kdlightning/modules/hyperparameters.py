"""What of a module's arguments goes into its checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

_PLAIN = (str, int, float, bool, type(None))


def is_plain(value: Any) -> bool:
    """True for plain data that `weights_only=True` loads."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return type(value) in _PLAIN  # exactly: NumPy's float64 is a float, and no plain data


def from_command_line() -> bool:
    """Whether Lightning's command builds this module now; then the whole configuration is plain and is saved."""
    return _given_hyperparameters.get() is not None
