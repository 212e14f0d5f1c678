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
from kdlightning.losses.collaborative import (
    kdcl_error_products,
    kdcl_general_weights,
    kdcl_linear,
    kdcl_linear_weights,
    kdcl_min_logit,
    kdcl_naive,
    mean_probability_logits,
    weighted_probability_logits,
)
from kdlightning.losses.customized_labels import smoothed_target_loss, zipf_labels, zipf_loss
from kdlightning.losses.feature.activation_boundary import AB, ActivationBoundary, ab_loss
from kdlightning.losses.feature.attention_transfer import AT, AttentionTransfer, attention_transfer_loss
from kdlightning.losses.feature.cat_kd import CATKD, cat_kd_loss
from kdlightning.losses.feature.cosine_embedding import CosineEmbedding, cosine_embedding_loss
from kdlightning.losses.feature.cwd import CWD, cwd_loss
from kdlightning.losses.feature.factor_transfer import FT, FactorTransfer, factor_transfer_loss
from kdlightning.losses.feature.fit_net import FitNet, fitnet_loss
from kdlightning.losses.feature.kdsvd import KDSVD, kdsvd_loss
from kdlightning.losses.feature.mgd import MGD, mgd_loss
from kdlightning.losses.feature.mobilebert_transfer import MobileBERTTransfer
from kdlightning.losses.feature.nst import NST, nst_loss
from kdlightning.losses.feature.ofd import OFD, ofd_loss, ofd_margin
from kdlightning.losses.feature.paraphraser import Paraphraser
from kdlightning.losses.feature.patient_kd import PatientKD, patient_kd_loss
from kdlightning.losses.feature.pearson_kd import PearsonKD, pearson_kd_loss
from kdlightning.losses.feature.review_kd import ReviewKD, hcl_loss
from kdlightning.losses.feature.sim_kd import SimKD, simkd_loss
from kdlightning.losses.feature.srrl import SRRL, srrl_loss
from kdlightning.losses.feature.tinybert_hidden import TinyBERTHidden, tinybert_hidden_loss
from kdlightning.losses.feature.vid import VID, vid_loss
from kdlightning.losses.linear_divergence import linear_cross_entropy, linear_divergence
from kdlightning.losses.online import codistillation_loss, mean_squared_probability_loss, soft_cross_entropy
from kdlightning.losses.peers import attended_logits, gated_logits, learned_target_kl, mean_of_others
from kdlightning.losses.relation.cc import CC, cc_loss
from kdlightning.losses.relation.crd import CRD
from kdlightning.losses.relation.fsp import FSP, fsp_loss
from kdlightning.losses.relation.irg import IRG, irg_loss
from kdlightning.losses.relation.minilm_relation import MiniLM, MiniLMRelation, minilm_loss, minilm_relation_loss
from kdlightning.losses.relation.pkt import PKT, pkt_loss
from kdlightning.losses.relation.queue_softmax import QueueSoftmax, queue_softmax_loss
from kdlightning.losses.relation.rkd import RKD, rkd_loss
from kdlightning.losses.relation.sp import SP, sp_loss
from kdlightning.losses.relation.tinybert_attention import TinyBERTAttention, tinybert_attention_loss
from kdlightning.losses.response.ctkd import CTKD
from kdlightning.losses.response.dist import DIST, dist_loss
from kdlightning.losses.response.distillation_token import DistillationToken
from kdlightning.losses.response.dkd import DKD, dkd_loss
from kdlightning.losses.response.hard_label_kd import HardLabelKD, hard_label_loss
from kdlightning.losses.response.kd import KD, kd_loss
from kdlightning.losses.response.logit_mse import LogitMSE, logit_mse_loss
from kdlightning.losses.response.margin_mse import MarginMSE, margin_mse_loss
from kdlightning.losses.response.mlkd import MLKD, batch_correlation_loss, class_correlation_loss
from kdlightning.losses.response.multi_label_kd import MultiLabelKD, multilabel_kd_loss
from kdlightning.losses.response.nkd import NKD, nkd_loss
from kdlightning.losses.response.soft_cross_entropy import SoftCrossEntropy
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
from kdlightning.losses.two_views import mean_discrepancy_loss, mutual_kl_loss
from kdlightning.losses.virtual_teacher import virtual_teacher_loss

__all__ = [
    "AB",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "CTKD",
    "CWD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "IRG",
    "KD",
    "KDSVD",
    "MGD",
    "MLKD",
    "NKD",
    "NST",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "SRRL",
    "VID",
    "WSLD",
    "ActivationBoundary",
    "AttentionTransfer",
    "CosineEmbedding",
    "DistillationLoss",
    "DistillationToken",
    "FactorTransfer",
    "FeatureLoss",
    "FitNet",
    "ForwardKL",
    "HardLabelKD",
    "JensenShannon",
    "LogitMSE",
    "LossContext",
    "MarginMSE",
    "MiniLM",
    "MiniLMRelation",
    "MobileBERTTransfer",
    "MultiLabelKD",
    "Paraphraser",
    "PatientKD",
    "PearsonKD",
    "QueueSoftmax",
    "RelationLoss",
    "ResponseLoss",
    "ReverseKL",
    "ReviewKD",
    "SimKD",
    "SoftCrossEntropy",
    "TapLoss",
    "TinyBERTAttention",
    "TinyBERTHidden",
    "TokenDivergence",
    "ab_loss",
    "attended_logits",
    "attention_transfer_loss",
    "batch_correlation_loss",
    "cat_kd_loss",
    "cc_loss",
    "channel_adapter",
    "channels_first",
    "class_correlation_loss",
    "codistillation_loss",
    "cosine_embedding_loss",
    "cwd_loss",
    "dist_loss",
    "dkd_loss",
    "factor_transfer_loss",
    "fitnet_loss",
    "forward_kl",
    "fsp_loss",
    "gated_logits",
    "hard_label_loss",
    "hcl_loss",
    "irg_loss",
    "jensen_shannon",
    "logit_mse_loss",
    "kd_loss",
    "kdcl_error_products",
    "kdcl_general_weights",
    "kdcl_linear",
    "kdcl_linear_weights",
    "kdcl_min_logit",
    "kdcl_naive",
    "kdsvd_loss",
    "learned_target_kl",
    "linear_cross_entropy",
    "linear_divergence",
    "margin_mse_loss",
    "mean_discrepancy_loss",
    "mean_of_others",
    "mean_probability_logits",
    "mean_squared_probability_loss",
    "mgd_loss",
    "minilm_loss",
    "minilm_relation_loss",
    "multilabel_kd_loss",
    "mutual_kl_loss",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "patient_kd_loss",
    "pearson_kd_loss",
    "pkt_loss",
    "pool_larger",
    "queue_softmax_loss",
    "reverse_kl",
    "rkd_loss",
    "simkd_loss",
    "skew_forward_kl",
    "skew_reverse_kl",
    "smoothed_target_loss",
    "soft_cross_entropy",
    "sp_loss",
    "srrl_loss",
    "term_name",
    "tinybert_attention_loss",
    "tinybert_hidden_loss",
    "total_variation_distance",
    "vid_loss",
    "virtual_teacher_loss",
    "weighted_probability_logits",
    "wsld_loss",
    "zipf_labels",
    "zipf_loss",
]
