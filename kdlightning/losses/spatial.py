"""Layouts and sizes of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
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


def position_mean(features: Tensor, layout: Layout = "channels_first") -> Tensor:
    """The mean over all positions, `(B, C)`; vectors as they are."""
    if features.ndim < 2:
        raise ValueError(f"features must be (batch, channels, …), not {tuple(features.shape)}")
    if features.ndim == 2:
        return features
    return channels_first(features, layout).flatten(2).mean(2)


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
    return pool_to(student, size), pool_to(teacher, size)


def pool_to(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pools a map to a size; one that is smaller is repeated, as adaptive pooling does.

    Args:
        tensor: `(B, C, L)`, `(B, C, H, W)` or `(B, C, D, H, W)`.
        size: of its last dimensions.
    """
    own = tensor.shape[2:]
    if list(own) == list(size):
        return tensor
    if all(wanted == 1 for wanted in size):
        return tensor.mean(list(range(2, tensor.ndim)), keepdim=True)
    if all(n % wanted == 0 for n, wanted in zip(own, size, strict=True)):
        # Windows that do not overlap: a plain pooling is several times faster on a CPU.
        return _POOLS[tensor.ndim](tensor, [n // wanted for n, wanted in zip(own, size, strict=True)])
    return _ADAPTIVE[tensor.ndim](tensor, list(size))


_POOLS: dict[int, Any] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
_ADAPTIVE: dict[int, Any] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
