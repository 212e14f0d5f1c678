"""Numbers and times as people read them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metric_words(metrics: Mapping[str, Any], most: int = 5) -> list[str]:
    """The numbers of an epoch's line: the training loss, then the validation metrics without the teacher's own."""
    chosen = [name for name in metrics if name == "train/loss"]
    chosen += [name for name in sorted(metrics) if name.startswith("val/") and not name.startswith("val/teacher_")]
    return [f"{name} {float(metrics[name]):.4g}" for name in chosen[:most]]


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 13 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
