"""Relations of all pairs of samples: finite for any features, with one matrix product in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 1e-30
"""What is smaller than this in every element counts as zero."""


def cosines(features: Tensor, *, eps: float = 0.0) -> Tensor:
    """Cosines `(B, B)` of samples `(B, D)`, as inner products of x / (‖x‖ + eps).

    A sample whose features are all zero has the cosine 0 to every other, and no gradient.
    """
    if features.requires_grad:
        products: Tensor = _Cosines.apply(features, eps)
        return products
    rows = unit_rows(features, eps)[0]
    return rows @ rows.mT


def distance_shares(features: Tensor) -> Tensor:
    """Squared distances `(B, B)` of samples `(B, D)` over the largest of them; 0 between samples that coincide."""
    if features.requires_grad:
        shares: Tensor = _DistanceShares.apply(features)
        return shares
    return _shares(features)[0]


def inner_products(features: Tensor) -> Tensor:
    """Inner products `(B, B)` of samples `(B, D)`, outside the graph; what is too large becomes the largest number."""
    return (features @ features.mT).nan_to_num_()


def unit_rows(matrix: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row divided by its L2 norm plus eps, outside the graph; a row of zeros stays.

    Returns:
        The rows, and what `unit_rows_gradient` wants: with the largest elements set to 1 their norms, these norms plus
        eps, and what they were divided by for it.
    """
    scale = matrix.abs().amax(1, keepdim=True)
    scale.masked_fill_(scale < SMALLEST, torch.inf)
    rows = matrix / scale
    # The largest element of a row is 1 now, so its norm is at least 1, or 0 for a row of zeros.
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1)
    lengths = norms + eps / scale if eps else norms
    return rows.div_(lengths), norms, lengths, scale


def unit_rows_gradient(upstream: Tensor, rows: Tensor, norms: Tensor, lengths: Tensor, scale: Tensor) -> Tensor:
    """The gradient of a matrix from that of its unit rows; 0 for a row of zeros."""
    along = (upstream * rows).sum(1, keepdim=True)
    if lengths is not norms:
        along *= lengths / norms
    return torch.addcmul(upstream, rows, along, value=-1).div_(lengths).div_(scale)


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, eps: float) -> Tensor:
        rows, *sizes = unit_rows(features, eps)
        ctx.save_for_backward(rows, *sizes)
        return rows @ rows.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        rows, *sizes = ctx.saved_tensors
        return unit_rows_gradient((upstream + upstream.mT) @ rows, rows, *sizes), None


class _DistanceShares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        shares, largest = _shares(features)
        ctx.save_for_backward(features, shares, largest)
        return shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        features, shares, largest = ctx.saved_tensors
        top = shares == 1  # what the others were divided by: at least two, by symmetry
        through_largest = (upstream * shares).sum() / top.sum().clamp(min=1)
        gradient = (upstream - through_largest * top).mul_(shares > 0).div_(largest)
        gradient = gradient + gradient.mT
        # d‖x_i − x_j‖² is 2 (x_i − x_j); the rows sum to zero, so the mean of the samples has no part.
        gradient.diagonal().sub_(gradient.sum(1))
        return gradient.mul_(-2) @ features


def _shares(features: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances over the largest, and the largest."""
    products = inner_products(features - features.mean(0))  # distances have no origin, and so they keep their digits
    longest = products.diagonal().amax().clamp(min=SMALLEST)
    products /= longest  # so that no sum is too large
    sums = products.diagonal()[:, None] + products.diagonal()
    squared = torch.add(sums, products, alpha=-2)
    squared.masked_fill_(squared <= 64 * torch.finfo(squared.dtype).eps * sums, 0.0)  # the rest is rounding
    largest = squared.amax().clamp_(min=SMALLEST)
    return squared.div_(largest), (largest * longest).clamp_(min=torch.finfo(squared.dtype).tiny)
