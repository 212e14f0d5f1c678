"""How the tokens of a text relate to each other: softmaxed products of their projections, and divergences of those."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdlightning.losses.numerics import LOWEST

_ENTRIES = {"cpu": 2**19}
"""By device, how many entries of a relation are worked on at a time: about a processor's cache; it changes rounding
alone."""

_MANY_ENTRIES = 2**23


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor | None, heads: int
) -> Tensor:
    """KL(teacher‖student) of two networks' relations softmax(A·Bᵀ/√d), the mean over tokens, heads and then samples.

    Relations of padding are left out, as rows and as columns. Of the matrices, `(B, heads, L, L)`, nothing outlives
    the call: the gradient is taken in the forward pass, of one part of the samples and heads after the other, so that
    less lies in memory at any time than one relation of both networks. Gradients are of first order.

    Args:
        student: A and B, each `(B, L, width)`; of a self-relation the same tensor twice.
        teacher: the same of the teacher; its width may be another one.
        mask: `(B, L)` of bool, True for tokens; None if there is no padding.
        heads: number of heads that each width is split into.

    Returns:
        A scalar.
    """
    if student[0].shape[:2] != teacher[0].shape[:2]:
        raise ValueError(
            "relations of student and teacher must be of the same tokens (batch, length): "
            f"{tuple(student[0].shape[:2])} and {tuple(teacher[0].shape[:2])}"
        )
    value: Tensor = _Divergence.apply(*student, *teacher, mask, heads)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, theirs: Tensor, others: Tensor, mask: Tensor | None, heads: int
    ) -> Tensor:
        projections = [_split(projection, heads) for projection in (first, second, theirs, others)]
        weights = _row_weights(mask, first, heads)
        columns = None if mask is None else mask.repeat_interleave(heads, dim=0)
        wanted = any(ctx.needs_input_grad[:2])
        gradients = [torch.empty_like(part) for part in projections[:2]] if wanted else []
        value = first.new_zeros(())
        for part in _parts(projections[0]):
            value += _divergence(
                [projection[part] for projection in projections],
                None if columns is None else columns[part],
                weights[part],
                [gradient[part] for gradient in gradients],
            )
        ctx.save_for_backward(*(_joined(gradient, heads) for gradient in gradients))
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        return gradients[0] * first, gradients[0] * second, None, None, None, None


def _divergence(projections: list[Tensor], mask: Tensor | None, weights: Tensor, gradients: list[Tensor]) -> Tensor:
    """The value of a part of the matrices; the derivatives by the student's two projections go into `gradients`."""
    first, second, theirs, others = projections
    own, target = _log_relations(first, second, mask), _log_relations(theirs, others, mask)
    probabilities = target.exp()
    value = (target.sub_(own).mul_(probabilities).sum(-1) * weights).sum()
    if gradients:
        # The derivative by the products is softmax - target.
        scale = 1 / math.sqrt(first.shape[-1])
        products = own.exp_().sub_(probabilities).mul_(weights.unsqueeze(-1)).mul_(scale)
        torch.bmm(products, second, out=gradients[0])
        torch.bmm(products.transpose(1, 2), first, out=gradients[1])
    return value


def _parts(projection: Tensor) -> list[slice]:
    """Parts of the matrices `(N, L, L)`; half of them at most, since up to three copies of a part are alive."""
    matrices, length, _ = projection.shape
    entries = _ENTRIES.get(projection.device.type, _MANY_ENTRIES)
    most = max(1, min(entries // max(length * length, 1), matrices // 2))
    return [slice(start, start + most) for start in range(0, matrices, most)]


def _split(projection: Tensor, heads: int) -> Tensor:
    """`(B·heads, L, width/heads)`."""
    batch, length, width = projection.shape
    return projection.reshape(batch, length, heads, width // heads).transpose(1, 2).flatten(0, 1)


def _joined(projection: Tensor, heads: int) -> Tensor:
    return projection.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def _log_relations(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithm of softmax(A·Bᵀ/√d) `(N, L, L)`; of padding's columns so low that they weigh nothing."""
    products = torch.bmm(first, second.transpose(1, 2)).div_(math.sqrt(first.shape[-1]))
    if mask is not None:
        products.masked_fill_(~mask[:, None, :], LOWEST)
    return products.log_softmax(-1)


def _row_weights(mask: Tensor | None, projection: Tensor, heads: int) -> Tensor:
    """`(B·heads, L)`: 1/(tokens of the sample · heads · samples) for tokens, 0 for padding."""
    batch, length, _ = projection.shape
    if mask is None:
        return projection.new_full((batch * heads, length), 1 / (batch * heads * length))
    counted = mask.to(projection.dtype)
    weights = counted / (counted.sum(1, keepdim=True).clamp(min=1) * batch * heads)
    return weights.repeat_interleave(heads, dim=0)
