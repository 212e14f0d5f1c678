"""What losses that read labels ask of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_hard_labels(method: str, logits: Tensor, target: Any) -> None:
    """Raises ValueError unless the target is one class number for each row of the logits."""
    if not isinstance(target, Tensor):
        raise ValueError(f"{method} needs labels, and this batch has none")
    if target.ndim != 1 or target.is_floating_point():
        raise ValueError(
            f"{method} needs hard labels (batch,), not soft targets {tuple(target.shape)}: leave mixup out"
        )
    if len(target) != len(logits):
        raise ValueError(f"{method} got {len(target)} labels for {len(logits)} samples")


def check_hard_or_soft_labels(method: str, logits: Tensor, target: Any) -> None:
    """Raises ValueError unless the target is one class number a sample, or one probability a class and sample."""
    if isinstance(target, Tensor) and target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                f"{method} got soft targets {tuple(target.shape)} for logits {tuple(logits.shape)}: they must agree"
            )
        return
    check_hard_labels(method, logits, target)
