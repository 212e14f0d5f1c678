"""What a loader hands over, and what a task makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return value


def moved(value: Any, device: torch.device | str) -> Any:
    """Nested tensors on a device."""
    return _map(value, lambda tensor: tensor.to(device))


def _cat(parts: list[Any]) -> Any:
    """Nested tensors, one after the other along the batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _cat([part[key] for part in parts]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_cat(list(items)) for items in zip(*parts, strict=True))
    return first


@dataclass
class LoadedBatch:
    """A collated batch of a data set wrapped by `IndexedViews`.

    Attributes:
        data: what the data set's own collate function made of view 0: `(x, y)`, a dict, ….
        index: sample numbers `(B,)`, int64, as the training or validation set counts them.
        view: number of the seeded view that `data` shows `(B,)`, int64 (the epoch, in training).
        views: the same samples under further augmentations, each as `data`; empty unless a term asked for them.
        partners: for each sample another one of its class, as `data`; None unless a term asked for them.
    """

    data: Any
    index: Tensor
    view: Tensor
    views: tuple[Any, ...] = ()
    partners: Any = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LoadedBatch:
        """The batch on another device."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> LoadedBatch:
        """The batch in page-locked memory."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self, function: Any) -> LoadedBatch:
        return replace(
            self,
            data=_map(self.data, function),
            index=function(self.index),
            view=function(self.view),
            views=_map(self.views, function),
            partners=_map(self.partners, function),
        )


@dataclass
class Batch:
    """What every part of kdlightning sees of a loader's batch; made by the task.

    Attributes:
        inputs: what the student is called with: a tensor, a tuple (positional) or a dict (by keyword).
        target: labels; `(B,)` int64, `(B, C)` soft targets, `(B, T)` tokens, …; None without labels.
        mask: `(B, T)`, 1 where a token counts; None where everything counts.
        index: sample numbers `(B,)`, int64; None if the loader does not give them (wrap it with `IndexedViews`).
        view: number of the view shown `(B,)`, int64, or None.
        views: inputs of the same samples under further augmentations; empty unless asked for.
        partners: inputs of another sample of each one's class; None unless asked for.
        teacher_inputs: the teacher's own inputs (tokenizer, template, resolution, context); None means `inputs`.
        tags: number of the task that each sample belongs to `(B,)`, int64, where one student learns several; else None.
        size: number of samples.
    """

    inputs: Any
    target: Any = None
    mask: Tensor | None = None
    index: Tensor | None = None
    view: Tensor | None = None
    views: tuple[Any, ...] = ()
    partners: Any = None
    teacher_inputs: Any = None
    tags: Tensor | None = None
    size: int = 0


def join(parts: Sequence[Batch]) -> Batch:
    """Several batches as one, one after the other, for one pass of a network; a single one as it is.

    A field that one of them lacks is None.
    """
    if len(parts) == 1:
        return parts[0]
    fields = {}
    for name in ("inputs", "target", "mask", "index", "view", "tags"):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if any(value is None for value in values) else _cat(values)
    return replace(parts[0], views=(), partners=None, size=sum(part.size for part in parts), **fields)
