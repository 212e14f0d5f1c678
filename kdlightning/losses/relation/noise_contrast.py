"""Noise contrast of embeddings with the rows of a bank, whose gradient is formed in the forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdlightning.losses.numerics import full_precision

EXACT = 40.0
"""Beyond this softplus(x) is x in float64 as well; torch's own threshold is 20."""


@dataclass(frozen=True)
class Rows:
    """Rows of a bank that embeddings `(B, D)` are compared with.

    Attributes:
        own: `(B, D)`, each sample's own row.
        others: `(M, D)`, rows for all samples of the batch together.
        left_out: `(B, M)`, True where a row is no negative of a sample.
    """

    own: Tensor
    others: Tensor
    left_out: Tensor


@full_precision
def noise_contrast(vectors: Tensor, rows: Rows, shift: Tensor, temperature: float) -> Tensor:
    """(1/B) Σ_i [softplus(−x_i) + Σ_k softplus(x_ik)], x = v·m/T − shift; no gradient flows into rows and shift.

    With h = exp(v·m/T)/Z and shift = log Z + log c these are −log(h/(h + c)) of the own row and −log(c/(h + c)) of the
    negatives, in a form that is finite for any exponent.
    """
    loss: Tensor = _NoiseContrast.apply(vectors, rows.own, rows.others, rows.left_out, shift, temperature)
    return loss


@full_precision
@torch.no_grad()
def log_mean_power(vectors: Tensor, rows: Rows, temperature: float) -> Tensor:
    """Logarithm of the mean of exp(v·m/T) over all samples, their own rows and their negatives."""
    others = (vectors @ rows.others.mT / temperature).masked_fill_(rows.left_out, -torch.inf)
    powers = torch.cat([(vectors * rows.own).sum(1) / temperature, others.flatten()])
    return powers.logsumexp(0) - (powers > -torch.inf).sum().to(powers.dtype).log()


class _NoiseContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        own: Tensor,
        others: Tensor,
        left_out: Tensor,
        shift: Tensor,
        temperature: float,
    ) -> Tensor:
        batch = len(vectors)
        right = (vectors * own).sum(1) / temperature - shift
        wrong = torch.addmm(-shift, vectors, others.mT, alpha=1 / temperature)
        wrong.masked_fill_(left_out, -torch.inf)
        value = F.softplus(-right, threshold=EXACT).sum() + F.softplus(wrong, threshold=EXACT).sum()
        if ctx.needs_input_grad[0]:
            pull = torch.sigmoid(-right).neg_()[:, None] * own
            ctx.save_for_backward(pull.addmm_(wrong.sigmoid_(), others).div_(temperature * batch))
        return value / batch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None, None
