"""Losses between a network's answers to two distortions of the same samples; both learn."""

from __future__ import annotations

from torch import Tensor

from kdlightning.losses.base import check_logits
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.response.kd import kd_loss
from kdlightning.losses.spatial import position_mean


@full_precision
def mutual_kl_loss(first: Tensor, second: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Both answers pull each other: T²/2 · (1/B) Σ_i [KL(q_i ‖ p_i) + KL(p_i ‖ q_i)], p and q of the two views.

    In each divergence the probabilities that lead are constants: every view learns from what the other one says.

    Args:
        first: logits `(B, C)` of the first view, C ≥ 2.
        second: logits `(B, C)` of the second.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar, the mean over the batch and both directions; float32 or better.
    """
    check_logits(first, second)
    pulls = kd_loss(first, second, temperature=temperature), kd_loss(second, first, temperature=temperature)
    return (pulls[0] + pulls[1]) / 2


@full_precision
def mean_discrepancy_loss(first: Tensor, second: Tensor) -> Tensor:
    """Maximum mean discrepancy under a linear kernel: ‖(1/B) Σ_i f_i − (1/B) Σ_i g_i‖², f and g of the two views.

    Args:
        first: features `(B, C)` of the first view, or maps `(B, C, …)`, of which the mean over positions is taken.
        second: those of the second, of the same width.

    Returns:
        A scalar; the gradient flows into both. float32 or better.
    """
    first, second = position_mean(first), position_mean(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both views' features must have one width: {first.shape[1]} and {second.shape[1]}")
    return (first.mean(0) - second.mean(0)).square().sum()
