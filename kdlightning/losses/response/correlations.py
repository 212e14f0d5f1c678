"""Correlations of classes and of samples in softened answers; their gradient is formed in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def correlation_gaps(
    student: Tensor,
    teacher: Tensor,
    temperatures: Sequence[float],
    *,
    classes: Tensor | bool = False,
    samples: Tensor | bool = False,
) -> Tensor:
    """Σ over temperatures and stacks of (1/C) Σ_c v_c ‖(Pᵗᵀ Pᵗ − Pˢᵀ Pˢ)_c‖² + (1/B) Σ_i w_i ‖(Pᵗ Pᵗᵀ − Pˢ Pˢᵀ)_i‖².

    P = softmax(z/T). One temperature after the other adds to the value and to the gradient, so no matrix of classes or
    samples outlives its temperature.

    Args:
        student: logits `(S, B, C)`.
        teacher: logits `(S, B, C)`; no gradient flows into them.
        temperatures: each above 0.
        classes: v `(S, C)`; True is 1 for all of them, False leaves the classes out.
        samples: w `(S, B)`; True is 1 for all of them, False leaves the samples out.
    """
    gaps: Tensor = _Gaps.apply(student, teacher.detach().to(student.dtype), tuple(temperatures), classes, samples)
    return gaps


class _Gaps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperatures: tuple[float, ...],
        classes: Tensor | bool,
        samples: Tensor | bool,
    ) -> Tensor:
        values, gradient = [], None
        for temperature in temperatures:
            q, p = _probabilities(student, temperature), _probabilities(teacher, temperature)
            slope = None
            if samples is not False:
                value, slope = _gap(q, p, samples, temperature)
                values.append(value)
            if classes is not False:
                value, by_class = _gap(q.mT, p.mT, classes, temperature)
                values.append(value)
                slope = by_class.mT if slope is None else slope.add_(by_class.mT)
            if slope is not None:
                # Back through the softmax.
                step = slope.sub_((slope * q).sum(-1, keepdim=True)).mul_(q)
                gradient = step if gradient is None else gradient.add_(step)
        ctx.options = temperatures, classes, samples
        ctx.save_for_backward(student, teacher, gradient)
        return sum(values[1:], values[0])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True the gradient itself must depend on the student
            value = _plain(student, teacher, *ctx.options)
            (gradient,) = torch.autograd.grad(value, student, create_graph=True)
        return gradient * upstream, None, None, None, None


def _gap(student: Tensor, teacher: Tensor, rows: Tensor | bool, temperature: float) -> tuple[Tensor, Tensor]:
    """(1/n) Σ_i w_i ‖D_i‖² with D = X Xᵀ − Y Yᵀ of `(S, n, m)`, and its gradient (2/n)·(D ∘ (w_i + w_j))·X over T."""
    difference = torch.bmm(teacher, teacher.mT).baddbmm_(student, student.mT, beta=-1)
    scale = 1 / difference.shape[-1]
    if isinstance(rows, bool):
        value = torch.dot(difference.flatten(), difference.flatten())
        return value * scale, torch.bmm(difference, student).mul_(4 * scale / temperature)
    value = torch.dot(torch.linalg.vector_norm(difference, dim=-1).square_().flatten(), rows.flatten())
    difference.mul_(rows[:, :, None] + rows[:, None])
    return value * scale, torch.bmm(difference, student).mul_(2 * scale / temperature)


def _plain(
    student: Tensor, teacher: Tensor, temperatures: Sequence[float], classes: Tensor | bool, samples: Tensor | bool
) -> Tensor:
    """The value in operations that can be differentiated twice."""
    values = []
    for temperature in temperatures:
        q, p = _probabilities(student, temperature), _probabilities(teacher, temperature)
        for x, y, rows in ((q, p, samples), (q.mT, p.mT, classes)):
            if rows is not False:
                values.append(((x @ x.mT - y @ y.mT).square().sum(-1) * rows).sum() / x.shape[-2])
    return sum(values[1:], values[0])


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1 else logits / temperature).softmax(-1)
