"""Layouts and sizes of feature maps."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

Layout = Literal["channels_first", "channels_last"]


def channels_first(tensor: Tensor, layout: Layout) -> Tensor:
    """Tokens `(B, N, D)` (or maps `(B, H, W, C)`) as `(B, D, N)` (or `(B, C, H, W)`).

    Raises:
        ValueError: `layout` is unknown.
    """
    if layout == "channels_last":
        return tensor.movedim(-1, 1)
    if layout != "channels_first":
        raise ValueError(f"layout must be channels_first or channels_last, not {layout!r}")
    return tensor


def pool_larger(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Brings two maps to one spatial size: in each dimension the larger is average-pooled to the smaller.

    Args:
        student: `(B, C, L)` or `(B, C, H, W)`; vectors `(B, C)` are returned as they are.
        teacher: as many dimensions; its number of channels may differ.

    Raises:
        ValueError: the numbers of dimensions differ.
    """
    if student.ndim != teacher.ndim:
        raise ValueError(
            "student and teacher features must have as many dimensions: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    size = [min(own, other) for own, other in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(tensor: Tensor, size: list[int]) -> Tensor:
    if list(tensor.shape[2:]) == size:
        return tensor
    pools: dict[int, Any] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
    return pools[tensor.ndim](tensor, size)
