"""Divergences of rows with their analytic gradients with respect to the student's logits.

p is the teacher's distribution, q the student's. With a_v = ∂L/∂q_v the gradient with respect to the logits is
q·(a − Σ q·a). Every function takes log p and log q `(rows, V)` as buffers that it may overwrite, and returns the values
`(rows,)` and, if wanted, the gradient `(rows, V)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdlightning.losses.numerics import check_share

Rows = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation_distance",
)


def row_divergence(name: str, *, beta: float, alpha: float) -> Rows:
    """The divergence of a name in `DIVERGENCES`, with its option bound.

    Raises:
        ValueError: the name is unknown or its option out of range.
    """
    if name == "jensen_shannon":
        check_share("beta", beta)
        if beta in (0, 1):
            return _forward_kl if beta == 0 else _reverse_kl
        return lambda log_p, log_q, wanted: _jensen_shannon(log_p, log_q, wanted, beta)
    if name in ("skew_forward_kl", "skew_reverse_kl"):
        check_share("alpha", alpha, one_allowed=False)
        if alpha == 0:
            return _forward_kl if name == "skew_forward_kl" else _reverse_kl
        skew = _skew_forward_kl if name == "skew_forward_kl" else _skew_reverse_kl
        return lambda log_p, log_q, wanted: skew(log_p, log_q, wanted, alpha)
    plain = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "total_variation_distance": _total_variation}
    if name not in plain:
        raise ValueError(f"unknown divergence {name!r}; known: {', '.join(DIVERGENCES)}")
    return plain[name]


def _chain(q: Tensor, a: Tensor) -> Tensor:
    """q·(a − Σ q·a), written into a."""
    a.mul_(q)
    return a.addcmul_(q, a.sum(-1, keepdim=True), value=-1)


def _forward_kl(log_p: Tensor, log_q: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    p = log_p.exp()
    values = log_p.sub_(log_q).mul_(p).sum(-1)
    return values, log_q.exp_().sub_(p) if wanted else None


def _reverse_kl(log_p: Tensor, log_q: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp()
    weighted = log_q.sub_(log_p).mul_(q)
    values = weighted.sum(-1)
    return values, weighted.addcmul_(q, values[:, None], value=-1) if wanted else None


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _jensen_shannon(log_p: Tensor, log_q: Tensor, wanted: bool, beta: float) -> tuple[Tensor, Tensor | None]:
    log_m = _log_mixture(log_p, log_q, beta)
    values = beta * (log_p - log_m).mul_(log_p.exp_()).sum(-1)
    ratio = log_m.neg_().add_(log_q)
    q = log_q.exp_()
    weighted = ratio.mul_(q)
    divergence = weighted.sum(-1)
    values += (1 - beta) * divergence
    # a = (1 − β)·log(q/m): the parts of p/m and q/m add up to a constant.
    return values, weighted.addcmul_(q, divergence[:, None], value=-1).mul_(1 - beta) if wanted else None


def _skew_forward_kl(log_p: Tensor, log_q: Tensor, wanted: bool, alpha: float) -> tuple[Tensor, Tensor | None]:
    ratio = _log_mixture(log_p, log_q, alpha).neg_().add_(log_p)
    values = (log_p.exp_() * ratio).sum(-1)
    # a = −(1 − α)·p/m
    return values, _chain(log_q.exp_(), ratio.exp_().mul_(alpha - 1)) if wanted else None


def _skew_reverse_kl(log_p: Tensor, log_q: Tensor, wanted: bool, alpha: float) -> tuple[Tensor, Tensor | None]:
    ratio = _log_mixture(log_p, log_q, 1 - alpha).neg_().add_(log_q)
    q = log_q.exp_()
    values = torch.mul(q, ratio, out=log_p).sum(-1)
    # a = log(q/m) − α·q/m, up to a constant
    return values, _chain(q, ratio.sub_(torch.exp(ratio, out=log_p), alpha=alpha)) if wanted else None


def _total_variation(log_p: Tensor, log_q: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp_()
    difference = log_p.exp_().neg_().add_(q)
    values = difference.abs().sum(-1) / 2
    return values, _chain(q, difference.sign_().div_(2)) if wanted else None
