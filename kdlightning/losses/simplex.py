"""Weights that are never negative and sum to 1, chosen to make something least."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SHRINK = 0.4
_LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.0)


def least_on_simplex(
    value: Callable[[Tensor], Tensor],
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    steps: int,
) -> Tensor:
    """Weights w with w ≥ 0 and Σ w = 1 at which a convex function is least, without reading anything from the device.

    A fixed number of Newton steps on f(w) − μ Σ log w. Before the first, μ is an eighth of f(start); after each it is
    0.4 of what it was. Each step goes as far along its direction as is best of five lengths. What is left at the end,
    f(w) − min f, is about K·μ.

    Args:
        value: f of `(M, K)` rows of weights, never negative; `(M,)`.
        derivatives: f's gradient `(K,)` and Hessian `(K, K)` at `(K,)` weights.
        start: `(K,)`, all above 0, sum 1.
        steps: Newton steps.

    Returns:
        `(K,)`, outside any graph.
    """
    weights = start.detach()
    smallest = torch.finfo(weights.dtype).tiny ** 0.5
    # Filled on the device: copying them from the host would wait for it.
    lengths = torch.cat([weights.new_full((1, 1), length) for length in _LENGTHS])
    barrier = value(weights[None])[0].clamp(min=smallest) / 8
    for _ in range(steps):
        direction = _newton_direction(weights, *derivatives(weights), barrier)
        longest = torch.where(direction < 0, -0.95 * weights / direction, 1.0).amin().clamp(max=1.0)
        tried = (weights + lengths * longest * direction).clamp(min=smallest)
        scores = value(tried) - barrier * tried.log().sum(1)
        weights = tried.index_select(0, scores.argmin()[None])[0]
        weights = weights / weights.sum()
        barrier = barrier * _SHRINK
    return weights


def _newton_direction(weights: Tensor, gradient: Tensor, hessian: Tensor, barrier: Tensor) -> Tensor:
    """Where the quadratic around w of f − μ Σ log w is least among directions of sum 0.

    In units of w, d = w·e, the system is diag(w) H diag(w) + μ: well conditioned however small a weight is.
    """
    scaled = weights[:, None] * hessian * weights
    ridge = barrier + torch.finfo(weights.dtype).eps * scaled.diagonal().sum()
    down = barrier - weights * gradient
    along, across = _solve(scaled + ridge * torch.eye(len(weights), device=weights.device), down, weights)
    direction = weights * (along - across * (weights @ along) / (weights @ across))
    return torch.where(direction.isfinite(), direction, 0.0)


def _solve(matrix: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """x of A x = b for a small positive definite A and each b, by elimination without pivots.

    The solvers of `torch.linalg` may wait for the device to tell whether A is singular.
    """
    table = torch.cat([matrix, torch.stack(right, 1)], 1)
    for i in range(len(matrix)):
        row = table[i : i + 1] / table[i, i]
        cleared = table - table[:, i : i + 1] * row
        table = torch.cat([cleared[:i], row, cleared[i + 1 :]])
    return table[:, len(matrix) :].unbind(1)
