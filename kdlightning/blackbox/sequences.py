"""Examples as token sequences whose loss is on the label alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from kdlightning.blackbox.base import Example
from kdlightning.generation.transformers import prompt_tokens

IGNORED = -100


@dataclass(frozen=True)
class TokenPair:
    """A tokenised example.

    Attributes:
        prompt: tokens of the prompt, as generation gives them to the student.
        label: tokens of the label with the end token; empty without a label.
    """

    prompt: tuple[int, ...]
    label: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.label)


def tokenize(example: Example, tokenizer: Any, *, encoder_decoder: bool = False) -> TokenPair:
    """Prompt and label apart, so that the label begins where a student that is given the prompt begins."""
    prompt = prompt_tokens(tokenizer, example.prompt, keep_end=encoder_decoder)
    label: list[int] = []
    if example.label:
        label = [*tokenizer(example.label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return TokenPair(tuple(prompt), tuple(label))


class LabelledSequences(Dataset):
    """Tokenised examples."""

    random_sources: tuple[str, ...] = ()

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenPair:
        return self.pairs[index]


class PaddedBatch:
    """Collates examples, padded on the right to the longest.

    A batch has `input_ids`, `attention_mask` and `labels` `(B, T)`, -100 outside the label. For encoder–decoders
    `input_ids` is the prompt alone and `labels` `(B, L)` the label alone.

    Args:
        pad: filling of `input_ids`.
        encoder_decoder: for which kind of student.
    """

    def __init__(self, pad: int, *, encoder_decoder: bool = False) -> None:
        self.pad = pad
        self.encoder_decoder = encoder_decoder

    def __call__(self, pairs: Sequence[TokenPair]) -> dict[str, Tensor]:
        if self.encoder_decoder:
            inputs = [pair.prompt for pair in pairs]
            labels = [pair.label or (IGNORED,) for pair in pairs]
        else:
            inputs = [pair.prompt + pair.label for pair in pairs]
            labels = [(IGNORED,) * len(pair.prompt) + pair.label for pair in pairs]
        return {
            "input_ids": _padded(inputs, self.pad),
            "attention_mask": _padded([(1,) * len(row) for row in inputs], 0),
            "labels": _padded(labels, IGNORED),
        }


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=float(filling))
