"""Divergences between the next-token distributions of two language models, position by position.

Logits are compared as they stand: the caller has shifted them. There is no T² factor (DistillKit and ModelOpt multiply
by it; TRL, MiniLLM, DistiLLM, TAID and torchtune do not). The modules are in `token_terms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kdlightning.losses.numerics import check_positive, check_share, full_precision, log_probabilities

Reduction = Literal["mean", "sum"]


@full_precision
def forward_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(p ‖ q) = Σ_v p log(p/q), p the teacher's and q the student's distribution.

    MiniLLM, DistiLLM, TAID and torchtune leave out the teacher's entropy: the same gradient, another value.

    Args:
        student: logits `(B, T, V)` (any leading dimensions).
        teacher: logits of the same shape; no gradient flows into them.
        mask: `(B, T)`, nonzero where a position counts; None counts all.
        temperature: both logits are divided by it.
        reduction: "mean" over the counted positions, or "sum".

    Returns:
        A scalar; float32 or better. Without a counted position it is 0, with zero gradient.
    """
    return _reduced(_forward_kl, student, teacher, mask, temperature, reduction)


@full_precision
def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(q ‖ p) = Σ_v q log(q/p), the token-level form of MiniLLM's objective. Arguments as in `forward_kl`."""
    return _reduced(_reverse_kl, student, teacher, mask, temperature, reduction)


@full_precision
def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised Jensen-Shannon divergence β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q.

    Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024. `beta` weighs the teacher, as in TRL
    and Liger; DistiLLM's `js_distance(lam=0.9)` is β = 0.1. At the ends the limit would be 0; by the convention of TRL
    and Liger β = 0 *is* forward and β = 1 reverse KL.

    Args:
        beta: between 0 and 1; 0.5 in the paper and TRL.

    The other arguments are those of `forward_kl`.
    """
    check_share("beta", beta)
    if beta in (0, 1):
        rows = _forward_kl if beta == 0 else _reverse_kl
        return _reduced(rows, student, teacher, mask, temperature, reduction)

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = _log_mixture(log_p, log_q, beta)
        return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)

    return _reduced(divergence, student, teacher, mask, temperature, reduction)


@full_precision
def skew_forward_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Skew KL: KL(p ‖ α·p + (1 − α)·q). Ko et al., "DistiLLM", ICML 2024, with α = 0.1.

    Args:
        alpha: share of the teacher in the mixture, 0 ≤ α < 1; 0 is forward KL.

    The other arguments are those of `forward_kl`.
    """
    check_share("alpha", alpha, one_allowed=False)

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_p, _log_mixture(log_p, log_q, alpha))

    return _reduced(divergence, student, teacher, mask, temperature, reduction)


@full_precision
def skew_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Skew reverse KL: KL(q ‖ (1 − α)·p + α·q). Ko et al., "DistiLLM", ICML 2024, with α = 0.1.

    Args:
        alpha: share of the student in the mixture, 0 ≤ α < 1; 0 is reverse KL.

    The other arguments are those of `forward_kl`.
    """
    check_share("alpha", alpha, one_allowed=False)

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_q, _log_mixture(log_p, log_q, 1 - alpha))

    return _reduced(divergence, student, teacher, mask, temperature, reduction)


@full_precision
def total_variation_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """½ Σ_v |p − q|, from 0 to 1. Wen et al., "f-Divergence Minimization", ACL 2023. Arguments as in `forward_kl`."""

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2

    return _reduced(divergence, student, teacher, mask, temperature, reduction)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _kl(log_p, log_q)


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _kl(log_q, log_p)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share·p + (1 − share)·q) for 0 ≤ share ≤ 1."""
    if share in (0, 1):
        return log_p if share == 1 else log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _reduced(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    """Applies a divergence of log-probabilities (teacher, student) to the counted rows and reduces it."""
    check_positive("temperature", temperature)
    check_reduction(reduction)
    if student.shape != teacher.shape:
        raise ValueError(
            "student and teacher logits must have one shape (…, vocabulary): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_mask(mask, student)
    if mask is not None:
        # Indexing and not multiplying: whatever stands at other positions, NaN included, has no influence.
        student, teacher = student[mask != 0], teacher[mask != 0]
    log_p = log_probabilities(teacher.detach(), temperature)
    rows = divergence(log_p, log_probabilities(student, temperature))
    return rows.sum() if reduction == "sum" else rows.sum() / max(rows.numel(), 1)


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless the reduction is "mean" or "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, not {reduction!r}")


def check_mask(mask: Tensor | None, tensor: Tensor) -> None:
    """Raises ValueError unless the mask has the tensor's leading dimensions."""
    if mask is not None and mask.shape != tensor.shape[:-1]:
        raise ValueError(f"the mask must be {tuple(tensor.shape[:-1])} like the positions, not {tuple(mask.shape)}")
