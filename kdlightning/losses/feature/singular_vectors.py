"""The first right singular vectors of matrices; gradients stay finite where singular values meet or vanish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEAD = 1e-20
"""Matrices without a larger element count as zero: their gradient, of the order 1/element, would overflow."""


def right_singular_vectors(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The right singular vectors of the largest singular values, and these over the matrix's largest element.

    They are eigenvectors of the smaller of XᵀX and XXᵀ, X divided by its largest element first. The gradient is
    the exact one, dvᵢ = Σⱼ vⱼ·(vⱼᵀ d(XᵀX) vᵢ)/(λᵢ − λⱼ), except that 1/g of a gap g = λᵢ − λⱼ is replaced by
    g/(g² + f²) with f = √ε·λ₁, ε that of the tensor's dtype: the same for gaps well above f, never more than 1/(2f),
    and 0 where two eigenvalues are equal, so that vectors that are not determined do not push the features.

    Args:
        matrices: `(B, P, C)`.
        count: how many, at most min(P, C).

    Returns:
        Vectors `(B, C, count)` of unit length with arbitrary signs, the largest singular value first, and these values
        `(B, count)`, through which no gradient flows. The vectors cannot be differentiated twice. A matrix with an
        element that is not finite gives NaN.
    """
    return _RightVectors.apply(matrices, count)  # type: ignore[no-untyped-call, no-any-return]


class _RightVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
        scale = matrices.abs().amax((1, 2), keepdim=True).clamp(min=DEAD)
        wide = matrices / scale
        narrow = wide.shape[1] < wide.shape[2]
        gram = wide @ wide.mT if narrow else wide.mT @ wide
        values, vectors = torch.linalg.eigh(gram.nan_to_num())
        values, vectors = values.flip(-1), vectors.flip(-1)
        top = vectors[..., :count]
        lengths = None
        if narrow:
            top = wide.mT @ top
            lengths = top.norm(dim=1, keepdim=True).clamp(min=torch.finfo(matrices.dtype).eps)
            top = top / lengths
        ctx.save_for_backward(wide, scale, values, vectors, top, lengths)
        strengths = values[:, :count].clamp(min=0).sqrt() + 0 * scale[..., 0]
        ctx.mark_non_differentiable(strengths)
        return top + 0 * scale, strengths

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        wide, scale, values, vectors, top, lengths = ctx.saved_tensors
        count = top.shape[-1]
        slope = gradient
        if lengths is not None:
            # v is Xᵀu over its length: first back through the length, then X's own part, then u's.
            slope = (slope - top * (top * slope).sum(1, keepdim=True)) / lengths
            own = vectors[..., :count] @ slope.mT
            slope = wide @ slope
        gaps = values[:, None, :count] - values[:, :, None]
        least = values[:, :1, None].clamp(min=1.0) * torch.finfo(gradient.dtype).eps ** 0.5
        turned = vectors @ (vectors.mT @ slope * gaps / (gaps.square() + least.square()))
        if lengths is not None:
            first = vectors[..., :count]
            whole = own + turned @ (first.mT @ wide) + first @ (turned.mT @ wide)
        else:
            whole = (wide @ turned) @ top.mT + (wide @ top) @ turned.mT
        return whole.div_(scale), None
