"""Which positions of a batch of texts are tokens and which are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def token_mask(batch: Any, length: int) -> Tensor | None:
    """`(B, T)` of bool, True for tokens, or None where the batch has no attention mask of this length.

    Args:
        batch: the step's `Batch`; None gives None.
        length: T, number of positions of the tensor that is to be masked.
    """
    inputs = getattr(batch, "inputs", None)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != length:
        return None
    return mask.bool()


def token_rows(student: Tensor, teacher: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """The tokens of `(B, C, T)` tensors as rows `(N, C)`, without padding; all positions where nothing is masked."""
    mask = token_mask(batch, student.shape[2])
    ours, theirs = student.transpose(1, 2), teacher.transpose(1, 2)
    if mask is None:
        return ours.flatten(0, 1), theirs.flatten(0, 1)
    return ours[mask], theirs[mask]
