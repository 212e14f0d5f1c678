"""What an encoder–decoder writes in answer to its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.tasks.base import Task
from kdlightning.tasks.causal_lm import IGNORED, CausalLM


class Seq2SeqLM(CausalLM):
    """Language modelling with encoder–decoders; batches are mappings with `input_ids`, `attention_mask` and `labels`.

    `labels` `(B, L)` is what the decoder is to write, -100 where a token does not count; nothing is shifted, since a
    decoder that was fed the tokens before t answers at t. The model makes its decoder's inputs from `fed_labels`, where
    the batch has them (labels with tokens that are fed and not counted), else from `labels`, or is given
    `decoder_input_ids` by the loader. Losses are sums over counted tokens, as those of `CausalLM` are, on full logits;
    metrics are the same: `perplexity`, and against a teacher `kl` and `agreement`.
    """

    wants_hidden: ClassVar[bool] = False

    def batch(self, raw: Any) -> Batch:
        """The batch, with labels among the inputs unless it has the decoder's inputs."""
        batch = Task.batch(self, raw)
        if raw is batch or batch.mask is not None:
            return batch
        if not isinstance(batch.inputs, Mapping) or "input_ids" not in batch.inputs:
            raise ConfigurationError("Seq2SeqLM reads mappings with input_ids, and the loader yielded none")
        labels = self.with_target(batch)
        inputs = dict(batch.inputs)
        fed = inputs.pop("fed_labels", labels)
        if "decoder_input_ids" not in inputs:
            inputs["labels"] = fed
        return replace(batch, inputs=inputs, mask=labels != IGNORED)
