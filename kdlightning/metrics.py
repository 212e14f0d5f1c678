"""Metrics that torchmetrics does not have in the form needed here."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Σ weight·value / Σ weight; NaN values stay visible, and nothing is read back from the device.

    torchmetrics' own `MeanMetric` either looks for NaNs in each update, which waits for the device, or, with
    `nan_strategy="disable"`, silently drops the weights (seen in 1.9).
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds values, each with the same weight or its own."""
        value = value.detach().float()
        weights = torch.as_tensor(weight, dtype=torch.float32, device=value.device).broadcast_to(value.shape)
        # A weight of zero leaves a value out, whatever it is.
        self.total += torch.where(weights == 0, 0.0, value * weights).sum()
        self.weight += weights.sum()

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.weight


class PerplexityFromLoss(WeightedMean):
    """exp of the mean negative log-likelihood; updated with means (or values) and their token counts as weights.

    torchmetrics' own perplexity wants full probabilities `(B, T, V)`, which a language model need not have made.
    """

    def compute(self) -> Tensor:
        """exp(Σ nll / Σ tokens)."""
        return super().compute().exp()
