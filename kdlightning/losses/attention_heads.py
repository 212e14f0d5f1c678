"""Numbers of attention heads that two networks must share."""

from __future__ import annotations

from collections.abc import Sequence


def equal_heads(student: Sequence[int | None], teacher: Sequence[int | None], taps: str) -> tuple[int, ...]:
    """The numbers of heads of paired layers, which are those of both networks.

    Args:
        student: of each layer; None where a tap is no projection of an attention layer.
        teacher: the same of the teacher.
        taps: what to say of such taps.

    Raises:
        ValueError: a number is not known, or the networks' differ.
    """
    heads = []
    for ours, theirs in zip(student, teacher, strict=True):
        if ours is None or theirs is None:
            raise ValueError(taps)
        if ours != theirs:
            raise ValueError(
                f"the student has {ours} attention heads and the teacher {theirs}: make them equal, or use "
                "MiniLMRelation, which compares any"
            )
        heads.append(ours)
    return tuple(heads)
