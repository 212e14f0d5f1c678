"""Soft labels that a network makes of its own answers and of those of a weak head inside it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlightning.losses.base import check_logits
from kdlightning.losses.numerics import full_precision, log_probabilities
from kdlightning.losses.response.labels import check_hard_labels
from kdlightning.losses.response.softened import softened_cross_entropy


@full_precision
def smoothed_target_loss(student: Tensor, target: Tensor) -> Tensor:
    """Target part of USKD: −(1/B) Σ_i (1 + p_i² − (1/B) Σ_j p_j²) · log p_i, p_i the probability of sample i's label.

    The bracket is a constant: a sample of which the network is surer than of its neighbours counts more. Yang et al.,
    "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized
    Soft Labels", ICCV 2023.

    Args:
        student: logits `(B, C)`.
        target: class numbers `(B,)`, int64.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    _check("the target part of USKD", student, student, target)
    log_certainty = log_probabilities(student).gather(1, target[:, None]).squeeze(1)
    square = (2 * log_certainty.detach()).exp()
    return -((1 + square - square.mean()) * log_certainty).mean()


@torch.no_grad()
@full_precision
def zipf_labels(student: Tensor, weak: Tensor, target: Tensor) -> Tensor:
    """Soft labels of the other classes by Zipf's law: n_c ∝ 1/rank_c for c ≠ y, 0 for the label y, of sum 1.

    Classes are ranked, the label among them, by how probable the network and its weak head find them, each measured by
    the sum over all classes but the label: r_c = p_c/(1 − p_y) + w_c/(1 − w_y), the largest first. The authors' code
    puts log p in the place of p there, and adds 1e-6 to the denominators.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        weak: logits `(B, C)` of the weak head.
        target: class numbers `(B,)`, int64.

    Returns:
        `(B, C)`, float32 or better, without gradient.
    """
    _check("USKD", student, weak, target)
    label = target[:, None]
    order = (_odds(student, label) + _odds(weak, label)).argsort(dim=1, descending=True, stable=True)
    shares = 1 / torch.arange(1, student.shape[1] + 1, device=student.device, dtype=student.dtype)
    found = torch.empty_like(student).scatter_(1, order, shares.expand_as(student)).scatter_(1, label, 0.0)
    return found / found.sum(1, keepdim=True)


@full_precision
def zipf_loss(student: Tensor, weak: Tensor, target: Tensor) -> Tensor:
    """Other classes' part of USKD: −(1/B) Σ_i Σ_{c≠y} n_ic log softmax_{c≠y}(z_i)_c, n of `zipf_labels`.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        weak: logits `(B, C)` of the weak head; no gradient flows into them.
        target: class numbers `(B,)`, int64.

    Returns:
        A scalar, the mean over the batch; float32 or better. With two classes it is 0.
    """
    labels = zipf_labels(student, weak, target)
    return softened_cross_entropy(_without(student, target[:, None]), labels.log(), 1.0)


def _odds(logits: Tensor, label: Tensor) -> Tensor:
    """p_c / (1 − p_y) for all classes, the label among them, also where p_y is 1 but for rounding."""
    return (logits - _without(logits, label).logsumexp(1, keepdim=True)).exp()


def _without(logits: Tensor, label: Tensor) -> Tensor:
    return logits.scatter(1, label, float("-inf"))


def _check(method: str, student: Tensor, weak: Tensor, target: Tensor) -> None:
    check_logits(student, weak)
    check_hard_labels(method, student, target)
    if student.shape[1] < 2:
        raise ValueError(f"{method} needs at least two classes")
