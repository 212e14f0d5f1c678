"""A scripted generator, and a tiny language model with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kdlightning.generation.base import Answer, Completion, Request, TextGenerator


class ScriptedGenerator(TextGenerator):
    """Answers "<prompt>/<sample>", notes what it was asked, and fails where it is told to."""

    def __init__(self, identity: str = "script", batch_size: int = 1, concurrency: int = 1) -> None:
        self.batch_size = batch_size
        self.concurrency = concurrency
        self.asked: list[tuple[str, int]] = []
        self.calls: list[int] = []
        self.failing: set[str] = set()
        self._identity = identity

    @property
    def identity(self) -> str:
        return self._identity

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self.calls.append(len(requests))
        answers = []
        for request in requests:
            self.asked += [(request.text, number) for number in request.numbers]
            if request.text in self.failing:
                answers.append(Answer.refused(request, f"no answer to {request.text}"))
            else:
                answers.append(
                    Answer(request, {number: Completion(f"{request.text}/{number}") for number in request.numbers})
                )
        return answers


@pytest.fixture
def scripted() -> type[ScriptedGenerator]:
    """The class of scripted generators."""
    return ScriptedGenerator


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of 258 tokens with `<pad>` and `<end>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="session")
def model() -> Any:
    """A tiny Llama with random weights, strong enough that its choices are not near-ties."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.4,
        )
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def encoder_decoder() -> Any:
    """A tiny T5 with random weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=258,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            initializer_factor=2.0,
        )
        return T5ForConditionalGeneration(config).eval()
