"""Inner products of all pairs of samples: finite for any features, with one matrix product in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 1e-30
"""What is smaller than this in every element counts as zero."""


def gram(features: Tensor, *, centred: bool = False) -> Tensor:
    """Inner products `(B, B)` of samples `(B, D)`; those beyond the type's range count as its largest number.

    Args:
        features: `(B, D)`.
        centred: subtract the mean of the samples first, for relations that do not depend on the origin: the products
            keep more digits. The gradient is that of such a relation.
    """
    products: Tensor = _Gram.apply(features, centred)
    return products


def cosines(features: Tensor, *, eps: float = 0.0) -> Tensor:
    """Cosines `(B, B)` of samples `(B, D)`, as inner products of x / (‖x‖ + eps); see `unit_rows`."""
    return gram(unit_rows(features, eps=eps))


def unit_rows(matrix: Tensor, *, eps: float = 0.0) -> Tensor:
    """Each row divided by its L2 norm plus eps. A row of zeros stays, with zero gradient; no number is too large."""
    rows: Tensor = _UnitRows.apply(matrix, eps)
    return rows


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, centred: bool) -> Tensor:
        ctx.save_for_backward(features)
        rows = features - features.mean(0) if centred else features
        return (rows @ rows.mT).nan_to_num_()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        # The products are symmetric. Centring has no part here: the gradients of relations that do not depend on the
        # origin sum to zero over the samples.
        (features,) = ctx.saved_tensors
        return (upstream + upstream.mT) @ features, None


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, eps: float) -> Tensor:
        scale = matrix.abs().amax(1, keepdim=True)
        scale.masked_fill_(scale < SMALLEST, torch.inf)
        rows = matrix / scale
        # The largest element of a row is 1 now, so its norm is at least 1, or 0 for a row of zeros.
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1)
        lengths = norms + eps / scale if eps else norms
        rows.div_(lengths)
        ctx.save_for_backward(rows, norms, lengths, scale)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        rows, norms, lengths, scale = ctx.saved_tensors
        along = (upstream * rows).sum(1, keepdim=True)
        if lengths is not norms:
            along *= lengths / norms
        return torch.addcmul(upstream, rows, along, value=-1).div_(lengths).div_(scale), None
