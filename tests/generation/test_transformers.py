"""A local model answers the same whatever shares its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.engine import Engine
from kdlightning.generation.transformers import TransformersGenerator, fingerprint, prompt_tokens

PROMPTS = ["a", "Hello there", "What is 2 + 2? Think.", "", "xyz " * 8]
GREEDY = Sampling(max_tokens=12)
WARM = Sampling(max_tokens=12, temperature=0.8, seed=1)


def texts(generator: TransformersGenerator, requests: list[Request]) -> list[list[str]]:
    return [answer.texts for answer in generator.generate(requests)]


def by_hand(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    ids = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < tokens:
            chosen = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if chosen == tokenizer.eos_token_id:
                break
            new.append(chosen)
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_greedy_answers_equal_a_loop_without_padding_or_cache(model: Any, tokenizer: Any) -> None:
    prompts = [prompt for prompt in PROMPTS if prompt]
    answers = texts(TransformersGenerator(model, tokenizer), [Request(prompt, sampling=GREEDY) for prompt in prompts])
    assert answers == [[by_hand(model, tokenizer, prompt, 12)] for prompt in prompts]
    assert len({answer[0] for answer in answers}) > 1


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_the_batch(model: Any, tokenizer: Any, sampling: Sampling) -> None:
    requests = [Request(prompt, samples=3, sampling=sampling) for prompt in PROMPTS if prompt]
    alone = texts(TransformersGenerator(model, tokenizer, batch_size=1), requests)
    together = texts(TransformersGenerator(model, tokenizer, batch_size=16), requests)
    reverse = texts(TransformersGenerator(model, tokenizer, batch_size=5), requests[::-1])[::-1]
    assert alone == together == reverse


def test_samples_differ_and_can_be_asked_for_one_by_one(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    request = Request("Hello", samples=4, sampling=WARM)
    (all_at_once,) = texts(generator, [request])
    assert len(set(all_at_once)) > 1
    assert [texts(generator, [request.only(number, 1)])[0][0] for number in range(4)] == all_at_once
    other = Request("Hello", samples=4, sampling=Sampling(max_tokens=12, temperature=0.8, seed=2))
    assert texts(generator, [other])[0] != all_at_once


def test_sampling_follows_the_models_distribution(model: Any, tokenizer: Any) -> None:
    request = Request("Hello", samples=400, sampling=Sampling(max_tokens=1, temperature=3.0, top_k=3))
    drawn = texts(TransformersGenerator(model, tokenizer, batch_size=400), [request])[0]
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("Hello")["input_ids"]])).logits[0, -1] / 3.0
    top = logits.topk(3)
    for token, probability in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        share = drawn.count(tokenizer.decode([token], skip_special_tokens=True)) / len(drawn)
        assert abs(share - probability) < 0.1
    assert len(set(drawn)) <= 3


def test_a_small_top_p_is_greedy(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    narrow = Sampling(max_tokens=8, temperature=1.0, top_p=1e-6)
    assert texts(generator, [Request("abc", sampling=narrow)]) == texts(
        generator, [Request("abc", sampling=Sampling(max_tokens=8))]
    )


def test_stop_texts_end_an_answer_and_are_cut_off(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    (whole,) = generator.generate([Request("Hello there", sampling=Sampling(max_tokens=20))])
    full = whole.completions[0]
    assert full.finish == "length"
    stop = full.text[4:6]
    (answer,) = generator.generate([Request("Hello there", sampling=Sampling(max_tokens=20), stop=(stop,))])
    assert answer.completions[0].finish == "stop"
    assert answer.completions[0].text == full.text[: full.text.find(stop)]


def test_the_end_token_ends_an_answer(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer, batch_size=64)
    request = Request("Hello", samples=64, sampling=Sampling(max_tokens=20, temperature=4.0))
    (answer,) = generator.generate([request])
    finishes = {completion.finish for completion in answer.completions.values()}
    assert finishes == {"stop", "length"}
    assert all("<end>" not in text for text in answer.texts)


def test_a_prompt_that_is_too_long_is_a_failure_and_hurts_nobody_else(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    nearly, long = "a" * 125, "a" * 128
    answers = generator.generate([Request(prompt, sampling=GREEDY) for prompt in ("Hello", nearly, long)])
    assert answers[0].texts == [by_hand(model, tokenizer, "Hello", 12)]
    assert answers[1].texts == [by_hand(model, tokenizer, nearly, 3)]
    assert answers[2].failures == {0: "the prompt has 128 tokens, and the model takes 128"}


def test_the_models_mode_and_random_state_are_left_alone(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.norm.eval()
    state = torch.get_rng_state()
    try:
        TransformersGenerator(model, tokenizer).generate([Request("a", sampling=WARM)])
        assert model.training
        assert model.model.layers[0].training
        assert not model.model.norm.training
    finally:
        model.eval()
    assert torch.equal(state, torch.get_rng_state())


def test_encoder_decoders_answer(encoder_decoder: Any, tokenizer: Any) -> None:
    requests = [Request(prompt, sampling=GREEDY) for prompt in PROMPTS if prompt]
    alone = texts(TransformersGenerator(encoder_decoder, tokenizer, batch_size=1), requests)
    together = texts(TransformersGenerator(encoder_decoder, tokenizer, batch_size=8), requests)
    assert alone == together
    sampled = texts(TransformersGenerator(encoder_decoder, tokenizer), [Request("a", samples=2, sampling=WARM)])
    assert len(set(sampled[0])) == 2


def test_messages_go_through_the_template(model: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    generator = TransformersGenerator(model, tokenizer)
    with pytest.raises(ConfigurationError, match="chat template"):
        generator.generate([Request(messages=messages)])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    try:
        chat = texts(generator, [Request(messages=messages, sampling=GREEDY)])
        assert chat == texts(generator, [Request("user: Hello\nassistant:", sampling=GREEDY)])
    finally:
        tokenizer.chat_template = None


def test_a_trained_model_is_another_one(model: Any, tokenizer: Any) -> None:
    before = TransformersGenerator(model, tokenizer).identity
    assert before == TransformersGenerator(model, tokenizer, batch_size=3).identity
    weight = model.lm_head.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.001)
    try:
        assert TransformersGenerator(model, tokenizer).identity != before
        assert TransformersGenerator(model, tokenizer, name="mine").identity == "mine"
    finally:
        with torch.no_grad():
            weight.copy_(original)
    assert fingerprint(model) in before


def test_runs_through_the_engine(model: Any, tokenizer: Any) -> None:
    result = Engine(TransformersGenerator(model, tokenizer), progress=False).run(
        [Request(prompt, samples=2, sampling=WARM) for prompt in ("a", "b", "a")]
    )
    assert result.asked == 4
    assert result.answers[0].texts == result.answers[2].texts


def test_wrong_arguments_are_named(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        TransformersGenerator(model, tokenizer, batch_size=0)
    with pytest.raises(ConfigurationError, match="Linear is no language model"):
        TransformersGenerator(torch.nn.Linear(1, 1), tokenizer)


def test_prompt_tokens_never_end_a_continuation() -> None:
    class Adding:
        eos_token, eos_token_id = "</s>", 1

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [5, 6] + ([1] if add_special_tokens else [])}

    assert prompt_tokens(Adding(), "ab", keep_end=False) == [5, 6]
    assert prompt_tokens(Adding(), "ab", keep_end=True) == [5, 6, 1]


def test_a_causal_answer_goes_on_from_its_beginning(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer, batch_size=3)
    sampling = Sampling(max_tokens=6)
    begun = [Request("one", answer_start=" two", sampling=sampling), Request("three", sampling=sampling)]
    whole = [Request("one two", sampling=sampling), Request("three", sampling=sampling)]
    assert [a.texts for a in generator.generate(begun)] == [a.texts for a in generator.generate(whole)]


def test_an_encoder_decoders_answer_goes_on_from_its_beginning(encoder_decoder: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(encoder_decoder, tokenizer, batch_size=3)
    sampling = Sampling(max_tokens=5)
    starts = ["", "ab", "ab", "xyz"]
    requests = [Request(f"question {n}", answer_start=start, sampling=sampling) for n, start in enumerate(starts)]
    for request, answer in zip(requests, generator.generate(requests), strict=True):
        tokens = [encoder_decoder.config.decoder_start_token_id]
        tokens += tokenizer(request.answer_start, add_special_tokens=False)["input_ids"]
        begun, prompt = len(tokens), torch.tensor([generator._tokens(request)])
        while len(tokens) < begun + 5 and tokens[-1] != tokenizer.eos_token_id:
            logits = encoder_decoder(input_ids=prompt, decoder_input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
        written = [token for token in tokens[begun:] if token != tokenizer.eos_token_id]
        assert answer.texts == [tokenizer.decode(written, skip_special_tokens=True)]


def test_a_beginning_is_part_of_the_request() -> None:
    assert Request("a").key() == Request("a", answer_start="").key()
    assert Request("a").key() != Request("a", answer_start="b").key()
    assert Request("a", answer_start="b").only(1, 2).answer_start == "b"
