"""Metrics that torchmetrics does not have in the form needed here."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MeanMetric


class PerplexityFromLoss(MeanMetric):
    """exp of the mean negative log-likelihood; updated with means (or values) and their token counts as weights.

    torchmetrics' own perplexity wants full probabilities `(B, T, V)`, which a language model need not have made.
    """

    def compute(self) -> Tensor:
        """exp(Σ nll / Σ tokens)."""
        return super().compute().exp()
