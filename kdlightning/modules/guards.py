"""Finds the first term that is not finite, without looking at the device in every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, NonFiniteLossError
from kdlightning.tasks import Task

_NEVER = 2**62


class FiniteGuard:
    """Remembers in which step each term first was NaN or infinite.

    A step only keeps its detached scalars. They are reduced together, on the device and without synchronisation, once
    `most` steps are kept or the terms change; the host looks in `check` alone.

    Args:
        most: steps kept before they are reduced.
    """

    def __init__(self, most: int = 128) -> None:
        self.most = most
        self.names: list[str] = []
        self.checked = 0
        self._first: dict[str, Tensor] = {}
        self._rows: list[list[Tensor]] = []
        self._steps: list[int] = []

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Notes this step's terms; no synchronisation."""
        names = list(terms)
        if names != self.names or len(self._rows) >= self.most:
            self._reduce()
            self.names = names
        self._rows.append([_alone(value.detach()) for value in terms.values()])
        self._steps.append(step)

    def check(self, step: int, trainer: Any) -> None:
        """Raises NonFiniteLossError if a term was not finite since the last look."""
        self._reduce()
        if self._first:
            rows = torch.stack(list(self._first.values())).tolist()
            bad = {name: row for name, row in zip(self._first, rows, strict=True) if row < _NEVER}
            if bad:
                name = min(bad, key=lambda each: bad[each])
                raise NonFiniteLossError(
                    f"term {name!r} became NaN or infinite at step {self._steps[bad[name]]} (steps {self.checked} to "
                    f"{step} were looked at); {last_finite(trainer)}. Lower its weight or the learning rate, or clip "
                    "gradients."
                )
        self._first.clear()
        self._steps.clear()
        self.checked = step

    def _reduce(self) -> None:
        """Folds the kept steps into the row, counted since the last look, at which each term first was not finite."""
        if not self._rows:
            return
        count = len(self._rows)
        finite = torch.isfinite(torch.stack([value for row in self._rows for value in row])).view(count, -1)
        numbers = torch.arange(len(self._steps) - count, len(self._steps), device=finite.device)
        rows = torch.where(finite, _NEVER, numbers[:, None]).amin(0)
        known = self._first
        # The newest names lead, in their order: of two that fail in one step a term is named and not the sum after it.
        self._first = dict(zip(self.names, rows.unbind(), strict=True))
        for name, row in known.items():
            self._first[name] = torch.minimum(self._first[name], row) if name in self._first else row
        self._rows.clear()


def _alone(value: Tensor) -> Tensor:
    """The scalar without a large tensor that it may be a view of."""
    return value if value.untyped_storage().nbytes() <= 64 else value.clone()


def check_weights(module: nn.Module, step: int, trainer: Any) -> None:
    """Raises NonFiniteLossError if a trained parameter is not finite: a loss can be finite and its gradient not."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    finite = torch.stack([torch.isfinite(parameter.detach()).all() for parameter in trained.values()]).tolist()
    bad = [name for name, good in zip(trained, finite, strict=True) if not good]
    if bad:
        raise NonFiniteLossError(
            f"{len(bad)} of {len(trained)} parameters, {bad[0]} among them, became NaN or infinite by step {step} "
            f"while the loss was finite: a gradient was not; {last_finite(trainer)}. Lower the learning rate, or clip "
            "gradients."
        )


def check_one_answer(task: Task, mode: str) -> None:
    """Raises ConfigurationError if a mode that compares one answer a sample gets a task with several."""
    if task.dense:
        raise ConfigurationError(
            f"{mode} compares one answer a sample, and {type(task).__name__} has one for each {task.answers}: use "
            "OfflineDistillation"
        )


def last_finite(trainer: Any) -> str:
    """A sentence that names the newest checkpoint of the run whose weights are all finite."""
    module = trainer.lightning_module
    paths: set[Path] = set()
    for callback in getattr(trainer, "checkpoint_callbacks", []):
        names = (getattr(callback, key, "") for key in ("last_model_path", "best_model_path"))
        paths |= {Path(name) for name in names if name}
    for path in sorted((path for path in paths if path.is_file()), key=lambda p: p.stat().st_mtime, reverse=True):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        # Parameters only: buffers may be infinite on purpose, as attention masks are.
        if all(bool(torch.isfinite(state[name]).all()) for name, _ in module.named_parameters() if name in state):
            return f"the last finite checkpoint is {path}"
    return "there is no finite checkpoint of this run yet"
