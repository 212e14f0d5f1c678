"""Samples as vectors."""

from __future__ import annotations

from torch import Tensor


def flat_samples(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `(B, D)`, the teacher's outside the graph."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ValueError(
            "relations need features (batch, …) of the same samples from both networks: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return student.flatten(1), teacher.detach().flatten(1)
