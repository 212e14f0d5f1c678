"""Two maps of the same samples brought together, for losses with a spatial meaning."""

from __future__ import annotations

from torch import Tensor

from kdlightning.losses.spatial import Layout, channels_first, pool_larger


def common_maps(
    method: str, student: Tensor, teacher: Tensor, layout: Layout, *, same_channels: bool = False
) -> tuple[Tensor, Tensor]:
    """Both channels first and of one size, the larger average-pooled; the teacher's outside the graph.

    Args:
        method: what the message calls the method.
        student: `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`.
        teacher: as many dimensions.
        layout: which dimension holds the channels, of both.
        same_channels: refuse different numbers of channels.

    Raises:
        ValueError: the two are no maps of the same samples, or do not fit together.
    """
    if student.ndim < 3 or student.ndim != teacher.ndim or len(student) != len(teacher):
        raise ValueError(
            f"{method} needs two maps (batch, channels, positions…) of the same samples: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if layout != "channels_first":
        student, teacher = _channels_first(student, teacher, layout)
    if same_channels and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"{method} compares channel by channel, and there are {student.shape[1]} and {teacher.shape[1]}: "
            "map the student's to the teacher's first (adapter: linear)"
        )
    teacher = teacher.detach()
    return (student, teacher) if student.shape[2:] == teacher.shape[2:] else pool_larger(student, teacher)


def _channels_first(student: Tensor, teacher: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    if layout == "channels_last" and student.shape[1:-1] != teacher.shape[1:-1]:
        raise ValueError(
            f"{student.shape[1]} and {teacher.shape[1]} tokens have no common grid: "
            "use taps that give maps (batch, channels, height, width)"
        )
    return channels_first(student, layout), channels_first(teacher, layout)
