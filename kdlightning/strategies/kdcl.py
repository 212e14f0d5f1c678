"""Networks that learn from what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.collaborative import (
    kdcl_error_products,
    kdcl_general_weights,
    kdcl_linear,
    kdcl_min_logit,
    kdcl_naive,
    weighted_probability_logits,
)
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities

VARIANTS = ("naive", "linear", "min_logit", "general")


class KDCL(OnlineStrategy):
    """Knowledge distillation via collaborative learning (Guo et al., CVPR 2020).

    Term of network i: T²·KL(softmax(z_t/T) ‖ softmax(z_i/T)), batch mean; z_t is one target for all networks, detached.
    The loss is the paper's Σ_i CE_i + λ·T²·KL_i; the defaults are λ = 1 (weights: task 1, kdcl 1) and T = 2, which are
    not checked against its experiments. Variants of z_t:

    * `naive`: z of the network with the lowest cross-entropy over the batch,
    * `linear`: Σ α_k z_k of the least cross-entropy over the batch, α ≥ 0, Σ α = 1; see `kdcl_linear_weights`,
    * `min_logit`: for each class the smallest z_k − z_{k,y}, y the label,
    * `general`: log Σ w_k p_k, with the w ≥ 0, Σ w = 1 of the least squared error Σ ‖Σ_k w_k p_k − y‖² over the
      validation set. After each validation of a fit the weights are computed anew, over all ranks; they are even before
      the first, and lie in the checkpoint. Metrics of a validation are those of the weights before it. With
      `callbacks.EMA` the averages are validated, and the weights are theirs. A fit without validation is refused. The
      paper's closed form, without w ≥ 0, is the same wherever it gives a distribution. What is
      validated chooses targets then: keep a test set beside it.

    The ensemble's metrics are those of Σ w_k p_k for `general`, and of the mean of probabilities for the others, whose
    combinations need labels. The public PyTorch code (shaoeric's) has the mean of logits as its only target, with
    0.5·CE + 0.5·T²·KL and T = 4.

    Args:
        variant: "naive", "linear", "min_logit" or "general".
        temperature: T > 0.
        own_views: whether each network is shown an augmentation of its own, as in the paper.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "kdcl": 1.0}
    shares: Tensor
    """Weights of the networks' probabilities (K,), of `general` alone."""

    def __init__(self, variant: str = "naive", temperature: float = 2.0, own_views: bool = True) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigurationError(f"KDCL: variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
        if not temperature > 0:
            raise ConfigurationError(f"KDCL: temperature must be above 0, not {temperature}")
        self.variant = variant
        self.needs_validation = variant == "general"
        self.temperature = temperature
        self.own_views = own_views
        # Summed over one validation pass on each rank alone: no buffer, which DDP would overwrite with rank 0's.
        self._products: Tensor | None = None

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without one class a sample; a view for each network."""
        check_class_probabilities("KDCL", task)
        self.views = len(networks) if self.own_views else 1
        if self.variant == "general":
            self.register_buffer("shares", torch.full((len(networks),), 1 / len(networks)))

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """One loss for each network."""
        target = self.target([output.logits for output in outputs], batch)
        return [kd_loss(output.logits, target, temperature=self.temperature) for output in outputs]

    def target(self, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """z_t `(B, C)`."""
        if self.variant == "general":
            return weighted_probability_logits(logits, self.shares)
        if batch.target is None:
            raise ConfigurationError(f"KDCL({self.variant!r}) combines answers by the labels, which these data lack")
        if self.variant == "min_logit":
            if batch.target.ndim != 1:
                raise ConfigurationError(
                    "KDCL('min_logit') needs one class number a sample; it has no form for soft (mixed) targets"
                )
            return kdcl_min_logit(logits, batch.target)
        return (kdcl_naive if self.variant == "naive" else kdcl_linear)(logits, batch.target)

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput | None:
        """The networks' mixture with the weights of `general`, else their mean."""
        if self.variant != "general":
            return super().ensemble(outputs)
        return ModelOutput(weighted_probability_logits([output.logits for output in outputs], self.shares))

    def begin_validation(self) -> None:
        """Starts the products at nothing."""
        self._products = None

    def observe(self, outputs: Sequence[ModelOutput], batch: Batch) -> None:
        """Adds a validation batch to the products of errors."""
        if self.variant == "general":
            products = kdcl_error_products([output.logits for output in outputs], batch.target)
            self._products = products if self._products is None else self._products + products

    def end_validation(self) -> None:
        """Chooses the weights anew, alike on all ranks."""
        if self.variant != "general":
            return
        products = torch.zeros_like(self.shares).diag() if self._products is None else self._products
        self._products = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(products)
        self.shares.copy_(kdcl_general_weights(products))
