"""Curriculum temperature: a temperature that is learned against the student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.losses.base import ResponseLoss, check_logits
from kdlightning.losses.numerics import LOWEST, check_positive, check_share, full_precision, widened
from kdlightning.losses.response.kd import standardized


class CTKD(ResponseLoss):
    """Curriculum temperature knowledge distillation (Li et al., AAAI 2023), with one temperature for all samples.

    τ² · (1/B) Σ_i KL(softmax(zᵗ_i/τ) ‖ softmax(zˢ_i/τ)) with τ = low + span · sigmoid(θ). The parameter θ begins at 1
    (τ = 15.62) and learns with everything else, but its gradient, τ² included, is multiplied by −λ: the temperature
    makes the student's task harder. λ rises as (1 − cos(π·min(progress/ramp, 1)))/2 from 0 to 1. The authors' code
    steps it once an epoch over the first 10 of 240, beginning with the value of epoch 1; here it moves with each
    optimizer step, over the same share of training. θ is part of checkpoints and gets the optimizer's weight decay,
    as theirs does. Read the temperature of the moment from `temperature`.

    The authors name a second variant, a temperature for each sample from a small network, and publish no code of it.
    Default weights: task 0.1 and ctkd 0.9.
    """

    compares = "classes"
    default_weights = {"task": 0.1, "ctkd": 0.9}

    def __init__(self, low: float = 1.0, span: float = 20.0, ramp: float = 10 / 240, standardize: bool = False) -> None:
        """
        Args:
            low: the temperature's lower bound, above 0 (`t_start` of the authors' code).
            span: how far above it the temperature can go (`t_end` of the authors' code).
            ramp: share of the training over which the reversed gradient grows to its full size, 0 to 1.
            standardize: standardise both logits over the classes first (Sun et al., CVPR 2024).
        """
        super().__init__()
        check_positive("low", low)
        check_positive("span", span)
        check_share("ramp", ramp)
        self.low = low
        self.span = span
        self.ramp = ramp
        self.standardize = standardize
        self.theta = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """τ of the moment, a scalar outside the graph."""
        return self._bounded(self.theta.detach())

    def reversal(self, progress: float) -> float:
        """λ after this share of the training."""
        share = 1.0 if progress >= self.ramp else progress / self.ramp
        return (1 - math.cos(math.pi * share)) / 2

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar."""
        check_logits(student, teacher)
        if student.shape[1] < 2:
            raise ValueError("CTKD needs at least two classes: the softmax of a single output is always 1")
        fixed = self.theta.detach()
        # θ itself on the way forward; on the way back the gradient times −λ.
        reversed_theta = fixed - self.reversal(progress) * (self.theta - fixed)
        return self._divergence(student, teacher.detach(), self._bounded(reversed_theta))

    @full_precision
    def _divergence(self, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return _SoftenedBy.apply(student, teacher.to(student.dtype), temperature.to(student.dtype))  # type: ignore[no-any-return]

    def _bounded(self, theta: Tensor) -> Tensor:
        bounded: Tensor = self.low + self.span * widened(theta).sigmoid()
        return bounded


class _SoftenedBy(torch.autograd.Function):
    """τ² · (1/B) Σ_i KL(softmax(zᵗ_i/τ) ‖ softmax(zˢ_i/τ)) with gradients for zˢ and τ, formed beside the value.

    With D = log p − log q, τ · dKL/dτ = −Σ_c p_c log p_c (D_c − KL) − Σ_c (q_c − p_c) log q_c. In this form no logit is
    multiplied by a small difference, which would overflow for large ones.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        log_q, log_p = ((z / temperature).log_softmax(-1).clamp_(min=LOWEST) for z in (student, teacher))
        p, gaps = log_p.exp(), log_p - log_q
        divergence = torch.bmm(p[:, None], gaps[:, :, None])[:, 0]
        mean = divergence.mean()
        inner = torch.dot(log_p.mul_(p).flatten(), gaps.sub_(divergence).flatten())
        del log_p, gaps
        difference = log_q.exp().sub_(p)
        inner = inner + torch.dot(log_q.flatten(), difference.flatten())
        by_temperature = temperature * (2 * mean - inner / len(student))
        ctx.save_for_backward(
            student, teacher, temperature, difference.mul_(temperature / len(student)), by_temperature
        )
        return mean * temperature**2

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, temperature, by_student, by_temperature = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True the gradients themselves must depend on the inputs
            by_student, by_temperature = _gradients(student, teacher, temperature)
        return by_student * upstream, None, by_temperature * upstream


def _gradients(student: Tensor, teacher: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `_SoftenedBy`, in operations that can be differentiated again."""
    log_q, log_p = ((z / temperature).log_softmax(-1).clamp(min=LOWEST) for z in (student, teacher))
    p, gaps = log_p.exp(), log_p - log_q
    divergence, difference = (p * gaps).sum(-1, keepdim=True), log_q.exp() - p
    inner = (log_p * p * (gaps - divergence)).sum() + (log_q * difference).sum()
    by_temperature = temperature * (2 * divergence.mean() - inner / len(student))
    return difference * (temperature / len(student)), by_temperature
