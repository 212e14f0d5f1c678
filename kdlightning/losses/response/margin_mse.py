"""Margins between a right passage and wrong ones."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.numerics import full_precision


@full_precision
def margin_mse_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Margin-MSE: the mean over queries and negatives of (mˢ − mᵗ)², with the margin m = s(q, p⁺) − s(q, p⁻).

    Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation",
    arXiv:2010.02666, 2020 (one negative a query; sentence-transformers' `MarginMSELoss` with several has the same
    mean). A constant that is added to all scores of a query changes nothing, so the scales of two architectures need
    not agree in their zero; they must agree in their unit.

    Args:
        student_scores: `(B, G)`, G ≥ 2: for each query the score of its positive first, then of its negatives.
        teacher_scores: the same shape; no gradient flows into it.

    Returns:
        A scalar; float32 or better.
    """
    if student_scores.ndim != 2 or student_scores.shape[1] < 2 or student_scores.shape != teacher_scores.shape:
        raise ValueError(
            "Margin-MSE needs scores (queries, 1 positive and its negatives) of one shape: "
            f"{tuple(student_scores.shape)} and {tuple(teacher_scores.shape)}"
        )
    ours, theirs = (scores[:, :1] - scores[:, 1:] for scores in (student_scores, teacher_scores.detach()))
    return F.mse_loss(ours, theirs)


class MarginMSE(ResponseLoss):
    """Margin-MSE between the scores of passages; see `margin_mse_loss`.

    For the tasks `Reranking` and `PassageRetrieval`, which give it scores with the positive's first. Default
    weights: task 0 and margin_mse 1, the paper's: the labels say which passage is the positive, and no more.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 0.0, "margin_mse": 1.0}

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of scores `(B, G)`, the positive's first; a scalar."""
        return margin_mse_loss(student, teacher)
