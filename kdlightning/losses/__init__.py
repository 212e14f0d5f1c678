"""Formulas of distillation, as functions of tensors and as modules that a configuration can name."""

from __future__ import annotations

from kdlightning.losses.base import (
    DistillationLoss,
    FeatureLoss,
    LossContext,
    RelationLoss,
    ResponseLoss,
    TapLoss,
    channel_adapter,
    term_name,
)
from kdlightning.losses.feature.attention_transfer import AT, AttentionTransfer, attention_transfer_loss
from kdlightning.losses.feature.fit_net import FitNet, fitnet_loss
from kdlightning.losses.linear_divergence import linear_cross_entropy, linear_divergence
from kdlightning.losses.online import mean_squared_probability_loss, soft_cross_entropy
from kdlightning.losses.relation.rkd import RKD, rkd_loss
from kdlightning.losses.relation.sp import SP, sp_loss
from kdlightning.losses.response.dkd import DKD, dkd_loss
from kdlightning.losses.response.kd import KD, kd_loss
from kdlightning.losses.spatial import channels_first, pool_larger
from kdlightning.losses.token import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation_distance,
)
from kdlightning.losses.token_terms import ForwardKL, JensenShannon, ReverseKL, TokenDivergence

__all__ = [
    "AT",
    "DKD",
    "KD",
    "RKD",
    "SP",
    "AttentionTransfer",
    "DistillationLoss",
    "FeatureLoss",
    "FitNet",
    "ForwardKL",
    "JensenShannon",
    "LossContext",
    "RelationLoss",
    "ResponseLoss",
    "ReverseKL",
    "TapLoss",
    "TokenDivergence",
    "attention_transfer_loss",
    "channel_adapter",
    "channels_first",
    "dkd_loss",
    "fitnet_loss",
    "forward_kl",
    "jensen_shannon",
    "kd_loss",
    "linear_cross_entropy",
    "linear_divergence",
    "mean_squared_probability_loss",
    "pool_larger",
    "reverse_kl",
    "rkd_loss",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "sp_loss",
    "term_name",
    "total_variation_distance",
]
