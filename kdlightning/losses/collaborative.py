"""What several networks say together: targets of networks that learn from each other's answers.

The four combinations of KDCL (Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020), and
the mean of probabilities. Each function gives logits, outside any graph, of which the networks learn with `kd_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.simplex import least_on_simplex

_LARGEST = 1e4
"""Differences of logits beyond it count as it, so that squares of them are still numbers."""


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    if not logits or any(one.ndim != 2 or one.shape != logits[0].shape for one in logits):
        shapes = ", ".join(str(tuple(one.shape)) for one in logits)
        raise ValueError(f"the networks' logits must have one shape (batch, classes), not {shapes or 'none at all'}")
    return torch.stack([one.detach() for one in logits])


def _against_label(stacked: Tensor, target: Tensor) -> Tensor:
    """z − z_y, whose log-sum-exp is the cross-entropy; for soft targets z − Σ_c t_c z_c."""
    if target.ndim == 1:
        index = target.expand(len(stacked), -1)[..., None]
        return (stacked - stacked.gather(2, index)).clamp(-_LARGEST, _LARGEST)
    return (stacked - (stacked * target.to(stacked.dtype)).sum(-1, keepdim=True)).clamp(-_LARGEST, _LARGEST)


@full_precision
def mean_probability_logits(logits: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
    """Logits of the mean of probabilities: T · log (1/K) Σ_k softmax(z_k/T).

    Args:
        logits: `(B, C)` of each of K networks.
        temperature: T > 0, at which the mean is taken: softened by T again, the answer is that mean.

    Returns:
        `(B, C)`, outside any graph; float32 or better.
    """
    check_positive("temperature", temperature)
    stacked = _stacked(logits)
    even = stacked.new_full((len(stacked),), 1 / len(stacked))
    return temperature * weighted_probability_logits(list(stacked / temperature), even)


@full_precision
def weighted_probability_logits(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Logits of a mixture of probabilities: log Σ_k w_k softmax(z_k).

    Args:
        logits: `(B, C)` of each of K networks.
        weights: `(K,)`, none negative, sum 1.

    Returns:
        `(B, C)`, outside any graph; float32 or better.
    """
    stacked = _stacked(logits).log_softmax(-1)
    return (stacked + weights.detach().to(stacked.dtype).log()[:, None, None]).logsumexp(0)


@full_precision
def kdcl_naive(logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """KDCL-Naive: the logits of the network whose cross-entropy with the labels is lowest over the batch.

    Args:
        logits: `(B, C)` of each of K networks.
        target: class numbers `(B,)` or soft targets `(B, C)`.

    Returns:
        `(B, C)`, outside any graph; float32 or better.
    """
    stacked = _stacked(logits)
    best = torch.stack([functional.cross_entropy(one, target) for one in stacked]).argmin()
    return stacked.index_select(0, best[None])[0]


@full_precision
def kdcl_linear(logits: Sequence[Tensor], target: Tensor, *, steps: int = 16) -> Tensor:
    """KDCL-Linear: Σ_k α_k z_k with the α on the simplex at which its cross-entropy with the labels is least.

    Args:
        logits: `(B, C)` of each of K networks.
        target: class numbers `(B,)` or soft targets `(B, C)`.
        steps: Newton steps, see `kdcl_linear_weights`.

    Returns:
        `(B, C)`, outside any graph; float32 or better.
    """
    weights = kdcl_linear_weights(logits, target, steps=steps)
    return (weights[:, None, None] * _stacked(logits)).sum(0)


@full_precision
def kdcl_linear_weights(logits: Sequence[Tensor], target: Tensor, *, steps: int = 16) -> Tensor:
    """α of KDCL-Linear: argmin CE(Σ_k α_k z_k, y) with α ≥ 0 and Σ α = 1.

    The problem is convex. A fixed number of Newton steps with a
    barrier (`least_on_simplex`) runs on the device, of which nothing is read back. With 16 steps the cross-entropy is
    within 1e-5 of the least one, relative to that of the even mixture, and within 2e-4 for logits of about 100; in
    float32 rounding adds about 1e-7.

    Args:
        logits: `(B, C)` of each of K networks.
        target: class numbers `(B,)` or soft targets `(B, C)`.
        steps: Newton steps.

    Returns:
        `(K,)`, outside any graph; float32 or better.
    """
    gaps = _against_label(_stacked(logits), target)
    networks, batch, classes = gaps.shape
    rows = gaps.flatten(1)

    def cross_entropy(weights: Tensor) -> Tensor:
        return (weights @ rows).view(-1, batch, classes).logsumexp(-1).mean(-1)

    def derivatives(weights: Tensor) -> tuple[Tensor, Tensor]:
        shares = (weights @ rows).view(batch, classes).softmax(-1)
        weighted = gaps * shares
        means = weighted.sum(-1)
        return means.mean(-1), (weighted.flatten(1) @ rows.T - means @ means.T) / batch

    return least_on_simplex(cross_entropy, derivatives, gaps.new_full((networks,), 1 / networks), steps=steps)


@full_precision
def kdcl_min_logit(logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """KDCL-MinLogit: z^c_k = z_k − z_{k,y}, then the smallest over the networks for each class.

    The label's own entry is 0, so the target is as sure of the label as no single network is.

    Args:
        logits: `(B, C)` of each of K networks.
        target: class numbers `(B,)`.

    Returns:
        `(B, C)`, outside any graph; float32 or better.
    """
    if target.ndim != 1:
        raise ValueError("the smallest logits are measured against the label's: one class number a sample is needed")
    stacked = _stacked(logits)
    return (stacked - stacked.gather(2, target.expand(len(stacked), -1)[..., None])).amin(0)


@full_precision
def kdcl_error_products(logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """C of KDCL-General, as a sum: C_jk = Σ_i ⟨p_j(x_i) − y_i, p_k(x_i) − y_i⟩.

    Args:
        logits: `(B, C)` of each of K networks.
        target: class numbers `(B,)` or soft targets `(B, C)`.

    Returns:
        `(K, K)`, outside any graph; float32 or better.
    """
    stacked = _stacked(logits)
    truth = functional.one_hot(target, stacked.shape[-1]) if target.ndim == 1 else target
    errors = (stacked.softmax(-1) - truth.to(stacked.dtype)).flatten(1)
    return errors @ errors.T


@full_precision
def kdcl_general_weights(products: Tensor, *, steps: int = 30) -> Tensor:
    """Weights of KDCL-General: argmin wᵀ C w with w ≥ 0 and Σ w = 1, the squared error of the mixture Σ_k w_k p_k.

    Without w ≥ 0 the answer is C⁻¹1 / (1ᵀC⁻¹1); where that has a negative entry the mixture would be no distribution.

    Args:
        products: `(K, K)`, the sums of `kdcl_error_products` over a validation set.
        steps: Newton steps; see `least_on_simplex`.

    Returns:
        `(K,)`; float32 or better. Even weights for products of 0.
    """
    products = products.detach()

    def error(weights: Tensor) -> Tensor:
        return ((weights @ products) * weights).sum(-1)

    def derivatives(weights: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * (products @ weights), 2 * products

    count = len(products)
    return least_on_simplex(error, derivatives, products.new_full((count,), 1 / count), steps=steps)
