"""The angle part of relational knowledge distillation in bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**21
"""Elements of one block of cosines `(anchors, B, B)`; a handful of such blocks is alive at a time."""


def angle_loss(gram_student: Tensor, gram_teacher: Tensor) -> Tensor:
    """Mean over all triples of smooth L1 between the cosines at each anchor, from inner products `(B, B)`.

    The cosine at i between j and k is (g_jk − g_ij − g_ik + g_ii) / (d_ij · d_ik), d² = g_ii + g_jj − 2 g_ij. It needs
    no `(B, B, D)` differences; the gradient is formed block by block in the forward pass.
    """
    loss: Tensor = _AngleLoss.apply(gram_student, gram_teacher)
    return loss


class _AngleLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram_student: Tensor, gram_teacher: Tensor) -> Tensor:
        size = len(gram_student)
        gradient = torch.zeros_like(gram_student)
        diagonal = gradient.diagonal()
        reciprocal_student, reciprocal_teacher = (
            _reciprocal_distances(gram_student),
            _reciprocal_distances(gram_teacher),
        )
        total = gram_student.new_zeros(())
        step = max(1, BLOCK // size**2)
        for start in range(0, size, step):
            anchors = slice(start, start + step)
            cosines = _cosines(gram_student, reciprocal_student, anchors)
            difference = cosines - _cosines(gram_teacher, reciprocal_teacher, anchors)
            slope = difference.clamp(-1, 1)
            # huber(x) = c·(x − c/2) with c = clamp(x, −1, 1), which is also its slope.
            total += (slope * (difference - slope / 2)).sum()
            del difference
            inverse = reciprocal_student[anchors]
            # Through the distances: d cos_jk / d d²_ij = −½ cos_jk / d²_ij, and j and k play the same part.
            pull = -((slope * cosines).sum(-1)) * inverse.square()
            # Through the inner products in the numerator.
            weight = slope.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
            gradient += weight.sum(0)
            rows = weight.sum(-1)
            diagonal[anchors] += rows.sum(-1) + pull.sum(-1)
            diagonal += pull.sum(0)
            gradient[anchors] -= 2 * (rows + pull)
        ctx.save_for_backward(gradient.div_(size**3))
        return total / size**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


def _reciprocal_distances(gram: Tensor) -> Tensor:
    """1 / d_ij, and 0 where two samples coincide up to rounding."""
    norms = gram.diagonal()
    scale = norms[:, None] + norms[None, :]
    squared = scale - 2 * gram
    apart = squared > 64 * torch.finfo(gram.dtype).eps * scale
    return torch.where(apart, squared, torch.inf).rsqrt().fill_diagonal_(0.0)


def _cosines(gram: Tensor, reciprocal: Tensor, anchors: slice) -> Tensor:
    """Cosines `(anchors, B, B)`."""
    rows = gram[anchors]
    cosines = gram[None] - rows[:, :, None]
    cosines -= rows[:, None, :]
    cosines += gram.diagonal()[anchors, None, None]
    return cosines.mul_(reciprocal[anchors, :, None]).mul_(reciprocal[anchors, None, :])
