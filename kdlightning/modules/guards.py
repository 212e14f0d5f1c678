"""Finds the first term that is not finite, without looking at the device in every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlightning.errors import NonFiniteLossError

_NEVER = 2**62


class FiniteGuard:
    """Remembers on the device in which step each term first was NaN or infinite."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.names: list[str] = []
        self.checked = 0

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Notes this step's terms; no synchronisation."""
        names = list(terms)
        values = torch.stack([value.detach() for value in terms.values()])
        if names != self.names:
            known = {} if self.first is None else dict(zip(self.names, self.first.unbind(), strict=True))
            never = values.new_full((), _NEVER, dtype=torch.long)
            union = names + [name for name in known if name not in names]
            self.first = torch.stack([known.get(name, never) for name in union])
            self.names = union
            if union != names:
                values = torch.cat([values, values.new_zeros(len(union) - len(names))])
        elif self.first is None:
            self.first = torch.full_like(values, _NEVER, dtype=torch.long)
        assert self.first is not None
        self.first = torch.where(torch.isfinite(values), self.first, self.first.clamp(max=step))

    def check(self, step: int, trainer: Any) -> None:
        """Raises NonFiniteLossError if a term was not finite since the last look."""
        if self.first is not None:
            steps = self.first.tolist()
            bad = {name: at for name, at in zip(self.names, steps, strict=True) if at < _NEVER}
            if bad:
                name = min(bad, key=lambda each: bad[each])
                raise NonFiniteLossError(
                    f"term {name!r} became NaN or infinite at step {bad[name]} (steps {self.checked} to {step} were looked "
                    f"at); {last_finite(trainer)}. Lower its weight or the learning rate, or clip gradients."
                )
        self.checked = step


def last_finite(trainer: Any) -> str:
    """A sentence that names the newest checkpoint of the run whose weights are all finite."""
    paths: set[Path] = set()
    for callback in getattr(trainer, "checkpoint_callbacks", []):
        names = (getattr(callback, key, "") for key in ("last_model_path", "best_model_path"))
        paths |= {Path(name) for name in names if name}
    for path in sorted((path for path in paths if path.is_file()), key=lambda p: p.stat().st_mtime, reverse=True):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        if all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()):
            return f"the last finite checkpoint is {path}"
    return "there is no finite checkpoint of this run yet"
