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
from kdlightning.losses.feature.activation_boundary import AB, ActivationBoundary, ab_loss
from kdlightning.losses.feature.attention_transfer import AT, AttentionTransfer, attention_transfer_loss
from kdlightning.losses.feature.cwd import CWD, cwd_loss
from kdlightning.losses.feature.fit_net import FitNet, fitnet_loss
from kdlightning.losses.feature.kdsvd import KDSVD, kdsvd_loss
from kdlightning.losses.feature.mgd import MGD, mgd_loss
from kdlightning.losses.feature.nst import NST, nst_loss
from kdlightning.losses.feature.ofd import OFD, ofd_loss, ofd_margin
from kdlightning.losses.feature.pearson_kd import PearsonKD, pearson_kd_loss
from kdlightning.losses.feature.review_kd import ReviewKD, hcl_loss
from kdlightning.losses.feature.vid import VID, vid_loss
from kdlightning.losses.linear_divergence import linear_cross_entropy, linear_divergence
from kdlightning.losses.online import mean_squared_probability_loss, soft_cross_entropy
from kdlightning.losses.relation.rkd import RKD, rkd_loss
from kdlightning.losses.relation.sp import SP, sp_loss
from kdlightning.losses.response.ctkd import CTKD
from kdlightning.losses.response.dist import DIST, dist_loss
from kdlightning.losses.response.dkd import DKD, dkd_loss
from kdlightning.losses.response.hard_label_kd import HardLabelKD, hard_label_loss
from kdlightning.losses.response.kd import KD, kd_loss
from kdlightning.losses.response.mlkd import MLKD, batch_correlation_loss, class_correlation_loss
from kdlightning.losses.response.multi_label_kd import MultiLabelKD, multilabel_kd_loss
from kdlightning.losses.response.nkd import NKD, nkd_loss
from kdlightning.losses.response.wsld import WSLD, wsld_loss
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
    "AB",
    "AT",
    "CTKD",
    "CWD",
    "DIST",
    "DKD",
    "KD",
    "KDSVD",
    "MGD",
    "MLKD",
    "NKD",
    "NST",
    "OFD",
    "RKD",
    "SP",
    "VID",
    "WSLD",
    "ActivationBoundary",
    "AttentionTransfer",
    "DistillationLoss",
    "FeatureLoss",
    "FitNet",
    "ForwardKL",
    "HardLabelKD",
    "JensenShannon",
    "LossContext",
    "MultiLabelKD",
    "PearsonKD",
    "RelationLoss",
    "ResponseLoss",
    "ReverseKL",
    "ReviewKD",
    "TapLoss",
    "TokenDivergence",
    "ab_loss",
    "attention_transfer_loss",
    "batch_correlation_loss",
    "channel_adapter",
    "channels_first",
    "class_correlation_loss",
    "cwd_loss",
    "dist_loss",
    "dkd_loss",
    "fitnet_loss",
    "forward_kl",
    "hard_label_loss",
    "hcl_loss",
    "jensen_shannon",
    "kd_loss",
    "kdsvd_loss",
    "linear_cross_entropy",
    "linear_divergence",
    "mean_squared_probability_loss",
    "mgd_loss",
    "multilabel_kd_loss",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "pearson_kd_loss",
    "pool_larger",
    "reverse_kl",
    "rkd_loss",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "sp_loss",
    "term_name",
    "total_variation_distance",
    "vid_loss",
    "wsld_loss",
]
