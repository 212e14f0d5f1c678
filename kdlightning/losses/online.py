"""Losses between networks that learn together, and between a network and its own past.

The mimicry term of deep mutual learning, KL(peer ‖ self), is `kd_loss` at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdlightning.losses.base import check_logits
from kdlightning.losses.numerics import check_positive, full_precision, log_probabilities
from kdlightning.losses.response.kd import kd_loss


@full_precision
def mean_squared_probability_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Consistency cost of mean teachers: (1 / (B·C)) Σ_i Σ_c (softmax(zˢ_i)_c − softmax(zᵗ_i)_c)².

    Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017. The mean over classes is the authors'
    code (`softmax_mse_loss` divides by the number of classes, its caller by the batch), against which their consistency
    weights are stated; the paper writes the squared distance, C times larger.

    Args:
        student: logits `(B, C)`.
        teacher: logits `(B, C)`; no gradient flows into them.

    Returns:
        A scalar, the mean over batch and classes; float32 or better.
    """
    check_logits(student, teacher)
    return (student.softmax(-1) - teacher.detach().softmax(-1)).square().mean()


@full_precision
def soft_cross_entropy(student: Tensor, target_probabilities: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with soft targets: −(1/B) Σ_i Σ_c t_ic log softmax(z_i/T)_c.

    The loss of PS-KD (Kim et al., ICCV 2021), whose targets are (1 − α)·onehot + α·p of the previous epoch.

    Args:
        student: logits `(B, C)`.
        target_probabilities: `(B, C)`, rows that sum to 1; no gradient flows into them.
        temperature: T > 0; 1 in PS-KD. There is no T² factor.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, target_probabilities)
    check_positive("temperature", temperature)
    return -(target_probabilities.detach() * log_probabilities(student, temperature)).sum(-1).mean()


@full_precision
def codistillation_loss(student: Tensor, others: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
    """Divergence from the mean prediction of others: T² · (1/B) Σ_i KL(1/K Σ_k softmax(z_k,i/T) ‖ softmax(zˢ_i/T)).

    Anil et al., "Large scale distributed neural network training through online distillation", ICLR 2018, who take the
    cross-entropy with that mean, without a temperature: at T = 1 the gradient is the same.

    Args:
        student: logits `(B, C)`, C ≥ 2.
        others: `(B, C)` of each of K ≥ 1 networks; no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_positive("temperature", temperature)
    if not others:
        raise ValueError("others is empty: the loss needs at least one network to learn from")
    for other in others:
        check_logits(student, other)
    log_shares = torch.stack([log_probabilities(other.detach(), temperature) for other in others])
    mean = log_shares.logsumexp(0) - math.log(len(others))
    return kd_loss(student, temperature * mean, temperature=temperature)
