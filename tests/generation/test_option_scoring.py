"""Likelihoods of given texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Request, option_scores
from kdlightning.generation.option_scoring import mean_nll
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.text.tokenizers import train_tokenizer

PROMPTS = ["Is it?\n", "What a long question is this, with many words in it?\n", "Is it?\n"]
OPTIONS = ("yes", "no", "not at all", "not")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def generator(request: Any) -> TransformersGenerator:
    tokenizer = train_tokenizer([*PROMPTS, *OPTIONS], 280, "bpe")
    sizes = {
        "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "num_key_value_heads": 2, "max_position_embeddings": 64},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers_model(
        architecture="AutoModelForCausalLM",
        model_type=request.param,
        config={"vocab_size": len(tokenizer), **sizes[request.param]},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # likelihoods that differ
    return TransformersGenerator(model, tokenizer, batch_size=4)


def one_by_one(generator: TransformersGenerator, prompt: str, option: str) -> float:
    tokens = generator.tokenizer(option, add_special_tokens=False)["input_ids"]
    before = generator.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = generator.model.eval()(input_ids=torch.tensor([before + tokens])).logits[0].double()
    chosen = logits.log_softmax(-1)[len(before) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])
    return -float(chosen.mean())


def test_options_are_scored_as_one_by_one(generator: TransformersGenerator) -> None:
    requests = [Request(prompt, options=OPTIONS) for prompt in PROMPTS]
    answers = generator.generate([*requests[:2], Request("Is it?\n"), requests[2]])
    for request, answer in zip(requests, [*answers[:2], answers[3]], strict=True):
        scores = option_scores(answer)
        assert list(scores) == list(OPTIONS)
        for option, value in scores.items():
            assert value == pytest.approx(one_by_one(generator, request.prompt or "", option), abs=1e-5)
    assert answers[2].completions[0].text != answers[0].completions[0].text
    assert option_scores(answers[0]) == pytest.approx(option_scores(answers[3]), abs=1e-6)


def test_options_of_one_token_share_a_pass(generator: TransformersGenerator) -> None:
    rows: list[int] = []

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = generator.model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            rows.append(len(input_ids))
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    options = [(1,), (2,), (3, 4), (3, 5, 6)]
    found = mean_nll(Counting(), [[7, 8]], [options], 0, 8)
    assert rows == [1]  # the row of 3 5 covers the others
    apart = [mean_nll(Counting(), [[7, 8]], [[option]], 0, 8)[0][0] for option in options]
    assert found[0] == pytest.approx(apart, abs=1e-5)


def test_a_prompt_that_is_too_long_with_its_options_is_a_failure(generator: TransformersGenerator) -> None:
    long = "x" * 63
    fits, fails, empty = generator.generate(
        [Request(long, options=("y",)), Request(long, options=("yyyy",)), Request("", options=("y",))]
    )
    assert option_scores(fits)
    assert option_scores(fails) == {} == option_scores(empty)
    assert "too many with its options" in fails.failures[0]


def test_options_are_part_of_a_request() -> None:
    one, other = Request("p", options=("a", "b")), Request("p", options=["a", "c"])  # type: ignore[arg-type]
    assert one.key() != other.key() != Request("p").key()
    assert one.needs == {"logits"}
    assert other.options == ("a", "c")
    with pytest.raises(ConfigurationError, match="options is a list of texts"):
        Request("p", options="ab")  # type: ignore[arg-type]
    assert option_scores(Answer.refused(one, "no")) == {}


def test_a_generator_of_text_alone_is_not_asked() -> None:
    from kdlightning.blackbox.base import Round, run_rounds

    def rounds() -> Any:
        answers = yield Round("Choice", [Request("p", options=("a", "b"))])
        return answers

    teacher = RecordedGenerator([{"prompt": "p", "answer": "a"}])
    with pytest.raises(ConfigurationError, match="the round 'Choice' needs logits"):
        run_rounds(rounds(), {"teacher": teacher}, progress=False)


def test_scores_survive_their_text(generator: TransformersGenerator) -> None:
    (answer,) = generator.generate([Request(PROMPTS[0], options=OPTIONS)])
    assert json.loads(answer.completions[0].text) == list(option_scores(answer).values())


def test_an_encoder_decoder_is_refused() -> None:
    tokenizer = train_tokenizer(PROMPTS, 270, "bpe")
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = transformers_model(
        architecture="AutoModelForSeq2SeqLM", model_type="t5", config={"vocab_size": len(tokenizer), **sizes}
    )
    with pytest.raises(ConfigurationError, match="no causal model"):
        TransformersGenerator(model, tokenizer).generate([Request("p", options=("a",))])
