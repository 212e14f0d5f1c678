"""What several networks say together, as targets of each one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlightning.losses.base import check_logits
from kdlightning.losses.numerics import check_positive, full_precision, log_probabilities


@full_precision
def gated_logits(gates: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """The gated ensemble of ONE: Σ_k g_ik z^k_i. Lan, Zhu & Gong, NeurIPS 2018.

    Args:
        gates: `(B, K)`, the share of each network for each sample; rows sum to 1.
        logits: of K networks, `(B, C)` each.

    Returns:
        Logits `(B, C)`; float32 or better. Gradients flow into gates and logits.
    """
    stacked = _stacked(logits)
    if gates.shape != stacked.shape[:2]:
        raise ValueError(f"gates must be (batch, networks) {tuple(stacked.shape[:2])}, not {tuple(gates.shape)}")
    return (gates.to(stacked.dtype).unsqueeze(2) * stacked).sum(1)


@full_precision
def mean_of_others(logits: Sequence[Tensor]) -> list[Tensor]:
    """For each of K networks the mean logits of the K−1 others, the targets of CL-ILR. Song & Chai, NeurIPS 2018.

    Args:
        logits: `(B, C)` each.

    Returns:
        K tensors `(B, C)`, float32 or better.
    """
    stacked = _stacked(logits)
    count = len(logits)
    if count < 2:
        raise ValueError(f"a mean of others needs at least 2 networks, not {count}")
    means = (stacked.sum(1, keepdim=True) - stacked) / (count - 1)
    return list(means.unbind(1))


@full_precision
def attended_logits(queries: Tensor, keys: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """For each of P peers its own mixture of all peers' logits: Σ_b softmax_b(q_a · k_b) z^b, its own among them.

    Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020. Their code mixes logits, the paper's
    formula mixes probabilities; products are not scaled by the width in either.

    Args:
        queries: `(B, P, D)`.
        keys: `(B, P, D)`.
        logits: of P peers, `(B, C)` each.

    Returns:
        P tensors `(B, C)`, float32 or better. Gradients flow into all arguments.
    """
    stacked = _stacked(logits)
    if queries.shape != keys.shape or queries.shape[:2] != stacked.shape[:2]:
        raise ValueError(
            f"queries and keys must be (batch, peers, width) of {len(logits)} peers: "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    attention = (queries @ keys.mT).softmax(-1).to(stacked.dtype)
    return list((attention @ stacked).unbind(1))


@full_precision
def learned_target_kl(student: Tensor, target: Tensor, *, temperature: float = 3.0) -> Tensor:
    """T² · (1/B) Σ_i KL(softmax(t_i/T) ‖ softmax(z_i/T)) with gradients in both: the target learns, too.

    With a constant target it is `kd_loss`. OKDDip's attention has no other source of gradients.

    Args:
        student: logits `(B, C)`.
        target: logits `(B, C)`.
        temperature: T > 0; 3 in OKDDip.

    Returns:
        A scalar, the mean over the batch; float32 or better.
    """
    check_logits(student, target)
    check_positive("temperature", temperature)
    log_q, log_p = log_probabilities(student, temperature), log_probabilities(target, temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / len(student)


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    """`(B, K, C)`."""
    if not len(logits):
        raise ValueError("logits are empty: give those of each network")
    for other in logits:
        check_logits(logits[0], other)
    return torch.stack(list(logits), dim=1)
