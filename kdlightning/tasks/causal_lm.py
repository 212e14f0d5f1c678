"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.linear_divergence import linear_cross_entropy, linear_divergence
from kdlightning.losses.numerics import widened
from kdlightning.metrics import PerplexityFromLoss, WeightedMean
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task

IGNORED = -100


class CausalLM(Task):
    """Causal language modelling; batches are mappings with `input_ids`, `attention_mask` and `labels`.

    `labels` follow transformers: aligned with `input_ids`, -100 where a token does not count; without them every
    attended token counts. The batch's `target` and `mask` `(B, T)` are shifted once, here: entry t belongs to the
    prediction that is made at t. Losses are sums over counted tokens, divided once by the tokens of the accumulation
    window on all ranks. Metrics: `perplexity`, and against a teacher `kl` (per token, temperature 1) and `agreement`.
    """

    monitor: ClassVar[str] = "val/perplexity"
    monitor_mode: ClassVar[str] = "min"
    counts_tokens: ClassVar[bool] = True
    wants_hidden: ClassVar[bool] = True

    def batch(self, raw: Any) -> Batch:
        """The batch with target and mask shifted to the positions that predict them."""
        batch = super().batch(raw)
        if raw is batch:
            return batch
        if not isinstance(batch.inputs, Mapping) or "input_ids" not in batch.inputs:
            raise ConfigurationError("CausalLM reads mappings with input_ids, and the loader yielded none")
        labels = batch.target
        if labels is None:
            labels = batch.inputs["input_ids"]
            attention = batch.inputs.get("attention_mask")
            labels = labels if attention is None else labels.masked_fill(attention == 0, IGNORED)
        target = functional.pad(labels[:, 1:], (0, 1), value=IGNORED) if batch.mask is None else labels
        return replace(batch, target=target, mask=target != IGNORED)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Cross-entropy summed over the counted tokens."""
        mask = self._mask(batch)
        target = self.with_target(batch).masked_fill(~mask, IGNORED)
        if output.hidden is None or output.head is None:
            return functional.cross_entropy(
                widened(output.logits.flatten(0, 1)), target.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        head = output.head
        return linear_cross_entropy(
            output.hidden,
            head.weight,
            target,
            mask,
            bias=head.bias,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
            reduction="sum",
        )

    def count(self, batch: Batch) -> Tensor | int:
        """Counted tokens, on the device."""
        return self._mask(batch).sum()

    def _mask(self, batch: Batch) -> Tensor:
        """`(B, T)`; of a batch of the user's own, every target that is no -100 counts."""
        return self.with_target(batch) != IGNORED if batch.mask is None else batch.mask.bool()

    def metrics(self) -> dict[str, Metric]:
        """`perplexity`: exp of the mean negative log-likelihood per counted token."""
        return {"perplexity": PerplexityFromLoss()}

    def update(self, metrics: Mapping[str, Metric], output: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `perplexity`."""
        count = self.count(batch)
        metrics["perplexity"].update(self.loss(output, batch) / torch.as_tensor(count).clamp(min=1), count)

    def comparison(self) -> dict[str, Metric]:
        """`kl` and `agreement`, per counted token."""
        return {"kl": WeightedMean(), "agreement": WeightedMean()}

    def compare(self, metrics: Mapping[str, Metric], student: ModelOutput, teacher: ModelOutput, batch: Batch) -> None:
        """Adds a batch to `kl` and `agreement`, from one counted row of logits after the other."""
        mask = self._mask(batch)
        count = mask.sum()
        metrics["agreement"].update(_agreement(student, teacher, mask) / count.clamp(min=1), count)
        metrics["kl"].update(_kl(student, teacher, mask) / count.clamp(min=1), count)

    def predict(self, output: ModelOutput, batch: Batch) -> list[dict[str, Any]]:
        """Perplexity and counted tokens of each sample."""
        rows = []
        target = self.with_target(batch)
        for number in range(len(target)):
            part = slice(number, number + 1)
            one = ModelOutput(output.logits[part])
            tokens = int((target[part] != IGNORED).sum())
            nll = self.loss(one, Batch(None, target[part], target[part] != IGNORED)) / max(tokens, 1)
            rows.append({"prediction": None, "perplexity": float(nll.exp()), "tokens": tokens})
        return rows


def _kl(student: ModelOutput, teacher: ModelOutput, mask: Tensor) -> Tensor:
    if student.hidden is not None and teacher.hidden is not None and student.head and teacher.head:
        ours, theirs = student.head, teacher.head
        width = min(len(ours.weight), len(theirs.weight))
        return linear_divergence(
            student.hidden,
            ours.weight[:width],
            teacher.hidden,
            theirs.weight[:width],
            mask,
            student_bias=None if ours.bias is None else ours.bias[:width],
            teacher_bias=None if theirs.bias is None else theirs.bias[:width],
            student_softcap=ours.softcap,
            teacher_softcap=theirs.softcap,
            student_logit_scale=ours.logit_scale,
            teacher_logit_scale=theirs.logit_scale,
            reduction="sum",
        )
    width = min(student.logits.shape[-1], teacher.logits.shape[-1])
    ours_log, theirs_log = (widened(o.logits[mask.bool()][:, :width]).log_softmax(-1) for o in (student, teacher))
    return (theirs_log.exp() * (theirs_log - ours_log)).sum()


def _agreement(student: ModelOutput, teacher: ModelOutput, mask: Tensor, rows: int = 512) -> Tensor:
    chosen = []
    for output in (student, teacher):
        if output.hidden is None or output.head is None:
            chosen.append(output.logits[mask.bool()].argmax(dim=-1))
        else:
            parts = output.hidden[mask.bool()].split(rows)
            chosen.append(torch.cat([output.head(part).argmax(dim=-1) for part in parts]))
    return (chosen[0] == chosen[1]).sum()
