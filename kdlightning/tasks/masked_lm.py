"""Words that stand behind a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.metrics import WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task
from kdlightning.tasks.causal_lm import IGNORED, CausalLM

_ROWS = 512
"""Positions whose logits are alive at a time, where only the best token is wanted."""


class MaskedLM(CausalLM):
    """Masked language modelling; batches are mappings with `input_ids`, `attention_mask` and `labels` `(B, T)`.

    `labels` follow transformers: the original token where it was chosen, -100 elsewhere; `MaskedText` makes them. The
    loss is the cross-entropy of the chosen tokens, whose logits alone are computed where the model's last layer is
    linear (all of transformers' encoders but MobileBERT). As with `CausalLM`, losses are sums over the counted tokens,
    divided once by those of the accumulation window on all ranks.

    Metrics, over the chosen tokens: `perplexity`, `acc` (share whose original is the most probable token), and against
    a teacher `kl` (temperature 1) and `agreement`.

    Args:
        distill_on: at which positions token responses (`ForwardKL`, `ReverseKL`, …) compare the networks: "masked", the
            chosen tokens; or "all", every token that is attended to, `[CLS]` and `[SEP]` included, as DistilBERT's code
            does by default (Sanh et al., 2019; its `restrict_ce_to_mask` is off). The response is then the mean over
            these tokens times the chosen ones, so that its weight means the same.
    """

    def __init__(self, distill_on: Literal["masked", "all"] = "masked") -> None:
        if distill_on not in ("masked", "all"):
            raise ConfigurationError(f"MaskedLM: distill_on is masked or all, not {distill_on!r}")
        self.distill_on = distill_on

    def batch(self, raw: Any) -> Batch:
        """The batch with the chosen tokens as its mask; nothing is shifted."""
        batch = Task.batch(self, raw)
        if raw is batch or batch.mask is not None:
            return batch
        if not isinstance(batch.inputs, Mapping) or "input_ids" not in batch.inputs:
            raise ConfigurationError("MaskedLM reads mappings with input_ids, and the loader yielded none")
        return replace(batch, mask=self.with_target(batch) != IGNORED)

    def distilled(self, batch: Batch) -> Batch:
        """The batch whose mask is what token responses count; see `distill_on`."""
        if self.distill_on == "masked":
            return batch
        attended = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
        target = self.with_target(batch)
        return replace(batch, mask=torch.ones_like(target, dtype=torch.bool) if attended is None else attended != 0)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Cross-entropy summed over the chosen tokens."""
        if output.hidden is not None and output.head is not None:
            return super().loss(output, batch)
        mask = self._mask(batch)
        target = self.with_target(batch)[mask]
        return functional.cross_entropy(widened(output.logits[mask]), target, reduction="sum")

    def metrics(self) -> dict[str, Metric]:
        """`perplexity` and `acc`."""
        return {**super().metrics(), "acc": WeightedMean()}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `perplexity` and `acc`."""
        super().update(metrics, output, batch)
        mask = self._mask(batch)
        metrics["acc"].update((_guesses(output, mask) == self.with_target(batch)[mask]).float())

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """For each text the most probable tokens behind its masks, the original ones, and its perplexity."""
        mask, target = self._mask(batch), self.with_target(batch)
        counts = mask.sum(dim=1).tolist()
        guesses, originals = _guesses(output, mask).split(counts), target[mask].split(counts)
        rows = []
        for number, (guess, original) in enumerate(zip(guesses, originals, strict=True)):
            one = slice(number, number + 1)
            part = Batch(None, target[one], mask[one], size=1)
            nll = self.loss(_of_text(output, one), part) / max(counts[number], 1)
            rows.append(
                {"prediction": guess.tolist(), "target": original.tolist(), "perplexity": float(nll.exp())}
                | {"tokens": counts[number]}
            )
        return rows


def _guesses(output: ModelOutput, mask: Tensor) -> Tensor:
    """The most probable tokens at the masked positions, one after the other."""
    if output.hidden is None or output.head is None:
        return output.logits[mask].argmax(dim=-1)
    head = output.head
    return torch.cat([head(states).argmax(dim=-1) for states in output.hidden[mask].split(_ROWS)])


def _of_text(output: ModelOutput, part: slice) -> ModelOutput:
    if output.hidden is None or output.head is None:
        return ModelOutput(output.logits[part])
    return ModelOutput(hidden=output.hidden[part], head=output.head)
