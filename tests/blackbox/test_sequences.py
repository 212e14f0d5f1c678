"""The loss is on the label, and prompts are tokenised as generation does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlightning.blackbox.base import Example
from kdlightning.blackbox.sequences import PaddedBatch, TokenPair, tokenize
from kdlightning.generation.transformers import prompt_tokens
from kdlightning.text.tokenizers import train_tokenizer

EXAMPLE = Example(0, "What is 1 + 1? ###", " One and one. --> 2")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A small byte-level tokenizer."""
    return train_tokenizer([EXAMPLE.prompt + EXAMPLE.label] * 3, 300, "bpe")


def test_an_example_is_prompt_then_label_then_end(tokenizer: Any) -> None:
    pair = tokenize(EXAMPLE, tokenizer)
    assert list(pair.prompt) == prompt_tokens(tokenizer, EXAMPLE.prompt, keep_end=False)
    assert tokenizer.decode(pair.prompt) == EXAMPLE.prompt
    assert pair.label[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(pair.label[:-1]) == EXAMPLE.label
    assert len(pair) == len(pair.prompt) + len(pair.label)


def test_an_example_without_label_has_no_end_either(tokenizer: Any) -> None:
    assert tokenize(Example(0, "What?", ""), tokenizer).label == ()


def test_a_batch_counts_label_tokens_only() -> None:
    batch = PaddedBatch(0)([TokenPair((5, 6), (7, 8, 1)), TokenPair((9,), ()), TokenPair((4,), (3, 1))])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1], [9, 0, 0, 0, 0], [4, 3, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, -100, 7, 8, 1], [-100] * 5, [-100, 3, 1, -100, -100],
    ]  # fmt: skip
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_encoder_decoders_get_prompt_and_label_apart() -> None:
    batch = PaddedBatch(0, encoder_decoder=True)([TokenPair((5, 6), (7, 8, 1)), TokenPair((9,), ())])
    assert batch["input_ids"].tolist() == [[5, 6], [9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[7, 8, 1], [-100, -100, -100]]
