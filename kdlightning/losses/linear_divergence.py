"""Divergences and cross-entropy of language models from hidden states and heads, without full logits."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlightning.losses.chunked_head import At, LinearHead, chunked_sum
from kdlightning.losses.divergence_gradients import row_divergence
from kdlightning.losses.numerics import LOWEST, check_positive
from kdlightning.losses.token import Reduction, check_mask, check_reduction


def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    mask: Tensor | None = None,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    alpha: float = 0.1,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    chunk_size: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """A divergence of two language models' next-token distributions, straight from their hidden states.

    Equals the function of the same name (`forward_kl`, …) on the logits softcap(scale·(h Wᵀ + b)), which are never
    formed as a whole: uncounted positions are dropped, then each chunk of positions gets its logits, its value and its
    analytic gradient in the forward pass. Half-precision inputs are multiplied and accumulated in float32, also under
    autocast; float64 stays float64. A half-precision weight costs a float32 copy of itself. Gradients are first-order.

    Args:
        student_hidden: `(…, H_s)`, states before the head.
        student_weight: `(V, H_s)`; its gradient is computed only if it requires one.
        teacher_hidden: `(…, H_t)` with the same leading dimensions. Nothing of the teacher gets a gradient.
        teacher_weight: `(V, H_t)`.
        mask: `(…)`, nonzero where a position counts; None counts all.
        divergence: "forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl" or
            "total_variation_distance".
        temperature: both logits are divided by it, after cap and scale. No T² factor.
        beta: weight of the teacher in "jensen_shannon"; 0 and 1 are forward and reverse KL.
        alpha: skew of the skew divergences.
        student_bias, teacher_bias: `(V,)` or None.
        student_softcap, teacher_softcap: c in c·tanh(x/c) (Gemma 2: 30), or None.
        student_logit_scale, teacher_logit_scale: factors before the cap.
        chunk_size: positions of a chunk; None chooses by vocabulary and device. It changes rounding only.
        reduction: "mean" over the counted positions, or "sum".

    Returns:
        A scalar in float32 or better. Without a counted position it is 0, with zero gradient.
    """
    check_positive("temperature", temperature)
    _check_head("student", student_hidden, student_weight, student_bias, student_softcap)
    _check_head("teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1] or len(student_weight) != len(teacher_weight):
        raise ValueError(
            "student and teacher must have the same positions and vocabulary: "
            f"{tuple(student_hidden.shape[:-1])} × {len(student_weight)} and "
            f"{tuple(teacher_hidden.shape[:-1])} × {len(teacher_weight)}"
        )
    _check_call(student_hidden, mask, chunk_size, reduction)
    rows_divergence = row_divergence(divergence, beta=beta, alpha=alpha)
    with torch.no_grad():
        teacher = LinearHead(teacher_weight, teacher_bias, teacher_softcap, teacher_logit_scale, temperature)
        states = teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1])

    def kernel(logits: Tensor, at: At, wanted: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(logits)
        log_p = _log_softmax(teacher.logits(states[at])[0])
        return rows_divergence(log_p.to(log_q.dtype), log_q, wanted)

    rows = _counted(mask)
    total = chunked_sum(
        student_hidden.reshape(-1, student_hidden.shape[-1]),
        student_weight,
        student_bias,
        kernel,
        softcap=student_softcap,
        scale=student_logit_scale,
        temperature=temperature,
        rows=rows,
        chunk_size=chunk_size,
    )
    return _reduced(total, len(states) if rows is None else len(rows), reduction)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy −log softmax(softcap(scale·(h Wᵀ + b)))_label without full logits; see `linear_divergence`.

    Args:
        hidden: `(…, H)`; already shifted, so that position t predicts `labels[t]`.
        weight: `(V, H)`.
        labels: `(…)`, int64; negative ones (-100) do not count.
        mask: `(…)`, nonzero where a position counts; None counts all positions with a label.
        bias: `(V,)` or None.
        softcap: c in c·tanh(x/c), or None.
        logit_scale: factor before the cap.
        chunk_size: positions of a chunk; None chooses.
        reduction: "mean" over the counted positions, or "sum".

    Returns:
        A scalar in float32 or better; 0, with zero gradient, if no position counts.
    """
    _check_head("student", hidden, weight, bias, softcap)
    _check_call(hidden, mask, chunk_size, reduction)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels must be {tuple(hidden.shape[:-1])} like the positions, not {tuple(labels.shape)}")
    counted = labels >= 0 if mask is None else (labels >= 0) & (mask != 0)
    rows = _counted(counted)
    flat = labels.reshape(-1)

    def kernel(logits: Tensor, at: At, wanted: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(logits)
        label = flat[at][:, None]
        values = -log_q.gather(1, label).squeeze(1)
        if not wanted:
            return values, None
        return values, log_q.exp_().scatter_add_(1, label, log_q.new_full(label.shape, -1.0))

    total = chunked_sum(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        kernel,
        softcap=softcap,
        scale=logit_scale,
        temperature=1.0,
        rows=rows,
        chunk_size=chunk_size,
    )
    return _reduced(total, len(flat) if rows is None else len(rows), reduction)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).clamp_(min=LOWEST)


def _counted(mask: Tensor | None) -> Tensor | None:
    """Numbers of the counted rows; None if no mask is given."""
    return None if mask is None else mask.reshape(-1).nonzero().squeeze(1)


def _reduced(total: Tensor, count: int, reduction: Reduction) -> Tensor:
    return total if reduction == "sum" else total / max(count, 1)


def _check_head(whose: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"the {whose}'s hidden states (…, width) and weight (vocabulary, width) do not fit: "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"the {whose}'s bias must be {tuple(weight.shape[:1])}, not {tuple(bias.shape)}")
    if softcap is not None:
        check_positive(f"{whose}_softcap", softcap)


def _check_call(hidden: Tensor, mask: Tensor | None, chunk_size: int | None, reduction: Reduction) -> None:
    check_reduction(reduction)
    check_mask(mask, hidden)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
