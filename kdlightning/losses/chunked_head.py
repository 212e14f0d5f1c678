"""Losses on the logits of a linear head that never hold all logits.

Rows of hidden states are taken a chunk at a time; the chunk's logits, its loss and its gradient are computed at once in
the forward pass, so the backward pass only scales what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdlightning.losses.numerics import widened

At = slice | Tensor
Kernel = Callable[[Tensor, At, bool], tuple[Tensor, Tensor | None]]
"""Maps the logits of some rows (a buffer it may overwrite), which rows, and whether a gradient is wanted, to the values
of the rows and the gradient with respect to the logits."""

LOGITS_OF_CHUNK = {"cpu": 2**23, "cuda": 2**25}
"""Logits of one chunk: the cost of each of the few buffers (34 MB and 134 MB in float32)."""

SMALLEST_CHUNK = 64
"""Fewer rows make the matrix products wait for memory."""


@dataclass
class LinearHead:
    """A head: logits = softcap(scale·(h Wᵀ + b)) / temperature.

    Attributes:
        weight: `(V, H)`.
        bias: `(V,)` or None.
        softcap: c in c·tanh(x/c), or None.
        scale: factor before the cap.
        temperature: divisor after it.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float
    temperature: float

    def __post_init__(self) -> None:
        self.weight, self.bias = widened(self.weight), widened(self.bias)

    @property
    def factor(self) -> float:
        """What multiplies hidden states and bias before the product (and, with a cap, before the tanh)."""
        return self.scale / (self.softcap if self.softcap is not None else self.temperature)

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of `(rows, H)`, and the tanh of them if there is a cap: the caller may overwrite both."""
        scaled = hidden.to(self.weight.dtype) * self.factor
        if self.bias is None:
            logits = scaled @ self.weight.T
        else:
            logits = torch.addmm(self.bias * self.factor, scaled, self.weight.T)
        if self.softcap is None:
            return logits, None
        saturation = logits.tanh_()
        return saturation * (self.softcap / self.temperature), saturation


@dataclass
class Plan:
    """What `ChunkedLoss` needs besides the three tensors that get gradients.

    Attributes:
        head: the student's head (its tensors detached).
        kernel: the loss of rows.
        rows: numbers of the counted rows, or None for all.
        chunk: rows of a chunk.
        gradients: for hidden, weight, bias: whether wanted.
    """

    head: LinearHead
    kernel: Kernel
    rows: Tensor | None
    chunk: int
    gradients: tuple[bool, bool, bool]


class ChunkedLoss(torch.autograd.Function):
    """The sum over the counted rows of a loss of logits; gradients for hidden states, weight and bias."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            total, gradients = _run(hidden, plan)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype if tensor is not None else None for tensor in (hidden, weight, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None


def _run(hidden: Tensor, plan: Plan) -> tuple[Tensor, list[Tensor | None]]:
    head, weight = plan.head, plan.head.weight
    for_hidden, for_weight, for_bias = plan.gradients
    # Uncounted rows get exactly zero, so the buffers start at zero.
    grad_hidden = torch.zeros(hidden.shape, dtype=weight.dtype, device=hidden.device) if for_hidden else None
    grad_weight = torch.zeros_like(weight) if for_weight else None
    grad_bias = torch.zeros_like(head.bias) if for_bias and head.bias is not None else None
    total = weight.new_zeros(())
    count = len(hidden) if plan.rows is None else len(plan.rows)
    factor = head.scale / head.temperature
    for start in range(0, count, plan.chunk):
        stop = min(start + plan.chunk, count)
        at: At = slice(start, stop) if plan.rows is None else plan.rows[start:stop]
        states = hidden[at].to(weight.dtype)
        logits, saturation = head.logits(states)
        values, gradient = plan.kernel(logits, at, any(plan.gradients))
        total += values.sum()
        del logits
        if gradient is None:
            continue
        if saturation is not None:
            gradient.addcmul_(gradient * saturation, saturation, value=-1)
        if grad_hidden is not None:
            grad_hidden[at] = (gradient @ weight).mul_(factor)
        if grad_weight is not None:
            grad_weight.addmm_(gradient.T, states, alpha=factor)
        if grad_bias is not None:
            grad_bias.add_(gradient.sum(0), alpha=factor)
    return total, [grad_hidden, grad_weight, grad_bias]


def chunked_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Kernel,
    *,
    softcap: float | None,
    scale: float,
    temperature: float,
    rows: Tensor | None,
    chunk_size: int | None,
) -> Tensor:
    """The sum over `rows` (None: all) of `kernel` on the logits of `hidden (N, H)`; a scalar in float32 or better."""
    wanted = torch.is_grad_enabled()
    tensors = (hidden, weight, bias)
    plan = Plan(
        head=LinearHead(weight.detach(), None if bias is None else bias.detach(), softcap, scale, temperature),
        kernel=kernel,
        rows=rows,
        chunk=chunk_size or default_chunk(len(weight), hidden.device.type),
        gradients=tuple(wanted and tensor is not None and tensor.requires_grad for tensor in tensors),  # type: ignore[arg-type]
    )
    total: Tensor = ChunkedLoss.apply(hidden, weight, bias, plan)
    return total


def default_chunk(vocabulary: int, device: str) -> int:
    """Rows of a chunk so that its logits fill a buffer of fixed size."""
    return max(SMALLEST_CHUNK, LOGITS_OF_CHUNK.get(device, LOGITS_OF_CHUNK["cuda"]) // max(vocabulary, 1))
