"""Embeddings that point where the teacher's point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlightning.losses.base import FeatureLoss
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.relation.products import SMALLEST


@full_precision
def cosine_embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine embedding loss: the mean over all vectors of 1 − cos(xˢ, xᵗ).

    For unit vectors it is half the squared distance. It is the loss on hidden states of Sanh et al., "DistilBERT, a
    distilled version of BERT", 2019 (torch's `CosineEmbeddingLoss` with target 1 on every token), and a usual one for
    sentence embeddings.

    Args:
        student: vectors `(…, D)`.
        teacher: the same shape; no gradient flows into it.

    Returns:
        A scalar from 0 to 2; float32 or better. A vector whose elements are all zero has the cosine 0 and gets no
        gradient.
    """
    if student.ndim < 1 or student.shape != teacher.shape:
        raise ValueError(
            "the cosine embedding loss compares vectors of one shape: "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return (1 - (_unit(student) * _unit(teacher.detach())).sum(-1)).mean()


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; those of zeros stay."""
    scale = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / torch.where(scale < SMALLEST, torch.inf, scale)
    # The largest element is 1 now, so the squared length is at least 1, or 0 for a vector of zeros.
    return vectors / vectors.square().sum(-1, keepdim=True).clamp(min=1).sqrt()


class CosineEmbedding(FeatureLoss):
    """Cosine embedding loss; see `cosine_embedding_loss`.

    On sentence embeddings: `FeatureKD(CosineEmbedding(), {"logits": "logits"})`. Of maps and tokens `(B, C, …)` the
    channels of each position are a vector; padding of texts is left out. A student of another width gets a linear map
    to the teacher's as adapter, which only training has: give `sentence_encoder` a `width` for one that ships.
    """

    padding = "rows"

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of features `(B, C)` or `(B, C, …)`, a scalar."""
        return cosine_embedding_loss(student.movedim(1, -1), teacher.movedim(1, -1))
