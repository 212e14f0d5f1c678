"""Sequences that a student writes while it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError

IGNORED = -100


class StudentSampler:
    """Lets a causal language model continue the prompts of a batch, and makes the result a batch again.

    A prompt is what comes before the first counted token; in packed text, where everything counts, it is the first
    `prompt_tokens`. Tokens after the first end-of-sequence token do not count.

    Args:
        max_new_tokens: most tokens written.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample from the k most probable tokens; 0 from all.
        top_p: sample from the smallest set of tokens with this mass.
        prompt_tokens: length of the prompt in packed text.
    """

    def __init__(
        self,
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        prompt_tokens: int = 16,
    ) -> None:
        if max_new_tokens < 1 or prompt_tokens < 1:
            raise ConfigurationError("StudentSampler: max_new_tokens and prompt_tokens must be at least 1")
        self.max_new_tokens = max_new_tokens
        self.prompt_tokens = prompt_tokens
        self.options: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
        if temperature > 0:
            self.options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with the student's own continuations in place of its text."""
        prompts, attention = self.prompts(batch)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            pad = _pad_token(model)
            sequences = model.generate(  # type: ignore[operator]
                input_ids=prompts, attention_mask=attention, pad_token_id=pad, **self.options
            )
        finally:
            for module, training in modes:
                module.training = training
        return self._as_batch(batch, sequences, prompts.shape[1], attention, _end_tokens(model), pad)

    def prompts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Prompts `(B, P)` padded on the left, and their attention mask."""
        ids = batch.inputs["input_ids"]
        # target[t] belongs to the token t+1, so the first counted target stands at the last prompt token.
        counted = batch.target != IGNORED
        given = batch.inputs.get("attention_mask")
        real = torch.ones_like(ids) if given is None else given.int()
        begin = real.argmax(dim=1)  # a loader may have padded on the left
        end = counted.int().argmax(dim=1) + 1
        packed = counted.gather(1, begin.unsqueeze(1)).squeeze(1) | ~counted.any(dim=1)
        start = begin + (real.sum(dim=1) - 1).clamp(min=1, max=self.prompt_tokens)
        lengths = torch.where(packed, start, end) - begin
        width = int(lengths.max())
        places = torch.arange(width, device=ids.device) - (width - lengths).unsqueeze(1)
        attention = places >= 0
        return ids.gather(1, places.clamp(min=0) + begin.unsqueeze(1)) * attention, attention.long()

    def _as_batch(
        self, batch: Batch, sequences: Tensor, width: int, attention: Tensor, ends: Tensor, pad: int
    ) -> Batch:
        written = sequences[:, width:]
        ended = torch.isin(written, ends).int()
        counted = (ended.cumsum(dim=1) - ended) == 0
        real = torch.cat([attention.bool(), counted], dim=1)
        labelled = torch.cat([torch.zeros_like(attention, dtype=torch.bool), counted], dim=1)
        # Left padding would shift the positions that the training pass counts: move it to the right.
        shift = (width - attention.sum(dim=1)).unsqueeze(1)
        places = torch.arange(sequences.shape[1], device=sequences.device) + shift
        inside = places < sequences.shape[1]
        places = places.clamp(max=sequences.shape[1] - 1)
        ids, real = sequences.gather(1, places), real.gather(1, places) & inside
        ids = ids.masked_fill(~real, pad)
        labels = ids.masked_fill(~(labelled.gather(1, places) & real), IGNORED)
        target = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        inputs = {"input_ids": ids, "attention_mask": real.long()}
        return replace(batch, inputs=inputs, target=target, mask=target != IGNORED, teacher_inputs=None)


def _end_tokens(model: nn.Module) -> Tensor:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    device = next(model.parameters()).device
    return torch.tensor(listed, dtype=torch.long, device=device)


def _pad_token(model: nn.Module) -> int:
    config = getattr(model, "generation_config", None)
    pad, ends = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    if pad is not None:
        return int(pad)
    return int(ends[0] if isinstance(ends, list) else ends) if ends is not None else 0
