"""How the tokens of a text relate to each other: softmaxed products of their projections, and divergences of those."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdlightning.losses.numerics import LOWEST


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor | None, heads: int
) -> Tensor:
    """KL(teacher‖student) of two networks' relations softmax(A·Bᵀ/√d), the mean over tokens, heads and then samples.

    Relations of padding are left out, as rows and as columns. Of the matrices, `(B, heads, L, L)`, nothing outlives
    the call: the gradient is taken in the forward pass, so that several relations never lie in memory together.

    Args:
        student: A and B, each `(B, L, width)`; of a self-relation the same tensor twice.
        teacher: the same of the teacher; its width may be another one.
        mask: `(B, L)` of bool, True for tokens; None if there is no padding.
        heads: number of heads that each width is split into.

    Returns:
        A scalar.
    """
    value: Tensor = _Divergence.apply(*student, *teacher, mask, heads)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, theirs: Tensor, others: Tensor, mask: Tensor | None, heads: int
    ) -> Tensor:
        ours, partner = _split(first, heads), _split(second, heads)
        scale = 1 / math.sqrt(ours.shape[-1])
        own = _log_relations(ours, partner, mask)
        target = _log_relations(_split(theirs, heads), _split(others, heads), mask)
        weights = _row_weights(mask, ours)
        probabilities = target.exp()
        value = (target.sub_(own).mul_(probabilities).sum(-1) * weights).sum()
        if any(ctx.needs_input_grad[:2]):
            # The derivative by the products is (softmax - target); own and probabilities are needed no more.
            products = own.exp_().sub_(probabilities).mul_(weights.unsqueeze(-1)).mul_(scale)
            ctx.save_for_backward(_joined(products @ partner), _joined(products.transpose(-2, -1) @ ours))
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        return gradients[0] * first, gradients[0] * second, None, None, None, None


def _split(projection: Tensor, heads: int) -> Tensor:
    """`(B, heads, L, width/heads)`."""
    batch, length, width = projection.shape
    return projection.reshape(batch, length, heads, width // heads).transpose(1, 2)


def _joined(projection: Tensor) -> Tensor:
    return projection.transpose(1, 2).flatten(2)


def _log_relations(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithm of softmax(A·Bᵀ/√d) `(B, heads, L, L)`; of padding's columns so low that they weigh nothing."""
    products = first @ second.transpose(-2, -1) / math.sqrt(first.shape[-1])
    if mask is not None:
        products = products.masked_fill_(~mask[:, None, None, :], LOWEST)
    return products.log_softmax(-1)


def _row_weights(mask: Tensor | None, projection: Tensor) -> Tensor:
    """`(B, 1, L)`: 1/(tokens of the sample · heads · samples) for tokens, 0 for padding."""
    batch, heads, length, _ = projection.shape
    if mask is None:
        return projection.new_full((batch, 1, length), 1 / (batch * heads * length))
    counted = mask.to(projection.dtype)
    return (counted / (counted.sum(1, keepdim=True).clamp(min=1) * batch * heads)).unsqueeze(1)
