"""Divergences between softened answers, whose gradients are formed in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlightning.losses.numerics import LOWEST


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """T² · (1/B) Σ_i w_i · KL(softmax(zᵗ_i/T) ‖ softmax(zˢ_i/T)), w_i = 1 by default.

    The gradient, T · (1/B) w_i · (softmax(zˢ_i/T) − softmax(zᵗ_i/T)), is made in place beside the value: half of the
    operations and of the memory that automatic differentiation needs.

    Args:
        student: logits `(B, C)`; -inf forbids a class.
        teacher: logits `(B, C)`; no gradient flows into them.
        temperature: T > 0.
        weight: `(B,)`; no gradient flows into it.
    """
    loss: Tensor = _Softened.apply(student, teacher.detach().to(student.dtype), weight, temperature, False)
    return loss


def softened_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """T² · (1/B) Σ_i w_i · H(softmax(zᵗ_i/T), softmax(zˢ_i/T)), H(p, q) = −Σ_c p_c log q_c; see `softened_kl`."""
    loss: Tensor = _Softened.apply(student, teacher.detach().to(student.dtype), weight, temperature, True)
    return loss


class _Softened(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor | None, temperature: float, crossed: bool
    ) -> Tensor:
        log_q = _log_probabilities(student, temperature)
        if crossed:
            p = _probabilities(teacher, temperature)
            values = (p * log_q).neg_()
        else:
            log_p = _log_probabilities(teacher, temperature)
            p = log_p.exp()
            values = log_p.sub_(log_q).mul_(p)
        if weight is not None:
            values.mul_(weight[:, None])
        loss = values.sum().mul_(temperature**2 / len(student))
        if ctx.needs_input_grad[0]:
            gradient = log_q.exp_().sub_(p).mul_(temperature / len(student))
            if weight is not None:
                gradient.mul_(weight[:, None])
            ctx.temperature = temperature
            ctx.save_for_backward(student, teacher, weight, gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, weight, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True the gradient itself must depend on the student
            gradient = _probabilities(student, ctx.temperature) - _probabilities(teacher, ctx.temperature)
            gradient = gradient * (ctx.temperature / len(student))
            if weight is not None:
                gradient = gradient * weight[:, None]
        return gradient * upstream, None, None, None, None


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1).clamp_(min=LOWEST)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).softmax(-1)
