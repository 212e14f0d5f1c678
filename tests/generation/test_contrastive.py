"""Contrastive decoding, against a plain loop in double precision without caches, padding or batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Contrast, Request, Sampling
from kdlightning.generation.contrastive import ContrastiveScores, contrastive_scores
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.transformers import TransformersGenerator

PAIRS = [
    ("Q: a?\nA: The answer is yes.", "Q: a?\nA: The answer is no."),
    ("Hello there", "Hello"),
    ("What is 2 + 2? It is 4.", "What is 2 + 2? It is ."),
    ("x", "y" * 40),
]
SAMPLING = Sampling(max_tokens=14)


def make(pair: tuple[str, str], weight: float = 1.0, **options: Any) -> Request:
    options = {"sampling": SAMPLING} | options
    return Request(pair[0], contrast=Contrast(pair[1], weight), **options)


def texts(generator: TransformersGenerator, requests: list[Request]) -> list[list[str]]:
    return [answer.texts for answer in generator.generate(requests)]


def by_hand(score: Any, tokenizer: Any, weight: float, tokens: int, stop: str = "") -> str:
    """The text that `score(number of a context, tokens so far)`, log-probabilities `(V,)`, leads to."""
    new: list[int] = []
    while len(new) < tokens:
        one, other = score(0, new), score(1, new)
        for chosen in (int(one.argmax()), int((one + weight * (one - other)).argmax())):
            if chosen == tokenizer.eos_token_id:
                return str(tokenizer.decode(new))
            text = str(tokenizer.decode([*new, chosen]))
            if stop and stop in text:
                return text[: text.find(stop)]
        new.append(chosen)
    return str(tokenizer.decode(new))


def scores_of(model: Any, tokenizer: Any, pair: tuple[str, str]) -> Any:
    double = model.double()
    contexts = [tokenizer(text)["input_ids"] for text in pair]

    @torch.no_grad()
    def score(number: int, new: list[int]) -> Tensor:
        return double(torch.tensor([contexts[number] + new])).logits[0, -1].log_softmax(-1)

    return score


@pytest.fixture
def double(model: Any) -> Any:
    """A copy of the model to turn into double precision."""
    import copy

    return copy.deepcopy(model)


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_a_batch_with_caches_equals_the_plain_loop(model: Any, double: Any, tokenizer: Any, weight: float) -> None:
    found = texts(TransformersGenerator(model, tokenizer, batch_size=8), [make(pair, weight) for pair in PAIRS])
    expected = [[by_hand(scores_of(double, tokenizer, pair), tokenizer, weight, 14)] for pair in PAIRS]
    assert found == expected
    plain = texts(TransformersGenerator(model, tokenizer), [Request(pair[0], sampling=SAMPLING) for pair in PAIRS])
    assert found != plain


def test_stop_texts_end_both_contexts(model: Any, double: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer, batch_size=8)
    whole = texts(generator, [make(pair) for pair in PAIRS])
    stops = [whole[0][0][5:7], whole[1][0][2], whole[3][0][4:6]]
    for stop in stops:
        found = generator.generate([make(pair, stop=(stop,)) for pair in PAIRS])
        expected = [by_hand(scores_of(double, tokenizer, pair), tokenizer, 1.0, 14, stop) for pair in PAIRS]
        assert [answer.texts[0] for answer in found] == expected
        assert "stop" in {answer.completions[0].finish for answer in found}


def test_answers_do_not_depend_on_the_batch(model: Any, tokenizer: Any) -> None:
    short, warm = Sampling(max_tokens=6), Sampling(max_tokens=6, temperature=0.8, seed=3)
    requests = [make(pair, sampling=short) for pair in PAIRS]
    requests += [make(pair, sampling=warm, samples=2) for pair in PAIRS]
    requests += [Request(pair[0], sampling=short) for pair in PAIRS[:2]]
    alone = texts(TransformersGenerator(model, tokenizer, batch_size=1), requests)
    assert texts(TransformersGenerator(model, tokenizer, batch_size=32), requests) == alone
    assert texts(TransformersGenerator(model, tokenizer, batch_size=5), requests[::-1])[::-1] == alone
    assert any(len(set(each)) > 1 for each in alone)


def test_two_equal_contexts_are_one(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    same = texts(generator, [make((pair[0], pair[0]), 2.0) for pair in PAIRS])
    assert same == texts(generator, [Request(pair[0], sampling=SAMPLING) for pair in PAIRS])


def test_an_answers_beginning_stands_behind_both_contexts(model: Any, tokenizer: Any) -> None:
    generator = TransformersGenerator(model, tokenizer)
    begun = texts(generator, [make(pair, answer_start=" So") for pair in PAIRS])
    assert begun == texts(generator, [make((f"{pair[0]} So", f"{pair[1]} So")) for pair in PAIRS])


def test_encoder_decoders_have_two_inputs(encoder_decoder: Any, tokenizer: Any) -> None:
    import copy

    requests = [make(pair, sampling=Sampling(max_tokens=8)) for pair in PAIRS[:3]]
    found = texts(TransformersGenerator(encoder_decoder, tokenizer, batch_size=8), requests)
    double = copy.deepcopy(encoder_decoder).double()
    for pair, (text,) in zip(PAIRS[:3], found, strict=True):
        inputs = [torch.tensor([tokenizer(each)["input_ids"]]) for each in pair]

        @torch.no_grad()
        def score(number: int, new: list[int], inputs: list[Tensor] = inputs) -> Tensor:
            fed = torch.tensor([[0, *new]])
            return double(input_ids=inputs[number], decoder_input_ids=fed).logits[0, -1].log_softmax(-1)

        assert text == by_hand(score, tokenizer, 1.0, 8)


def test_a_context_that_is_too_long_is_a_failure(model: Any, tokenizer: Any) -> None:
    answers = TransformersGenerator(model, tokenizer).generate([make(("a", "b" * 130)), make(PAIRS[0])])
    assert answers[0].failures == {0: "the prompt has 130 tokens, and the model takes 128"}
    assert answers[1].texts


# -- scores ------------------------------------------------------------------------------------------------------------


def distribution(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_the_text_ends_where_its_own_context_ends_it() -> None:
    one, other = distribution(0.5, 0.4, 0.1), distribution(0.45, 0.1, 0.45)
    both = torch.cat([one, other]).float()
    start = torch.zeros(2, 1, dtype=torch.long)
    assert ContrastiveScores(1.0)(start, both).argmax(-1).tolist() == [1, 1]
    assert ContrastiveScores(1.0, ends=[0])(start, both).argmax(-1).tolist() == [0, 0]
    assert ContrastiveScores(1.0, ends=[2])(start, both).argmax(-1).tolist() == [1, 1]


def test_what_is_impossible_stays_so() -> None:
    one = distribution(0.6, 0.4, 0.0, 0.0)
    other = distribution(0.5, 0.0, 0.5, 0.0)
    scores = contrastive_scores(one, other, 1.0)
    assert scores.isneginf().tolist() == [[False, False, True, True]]
    assert scores.argmax(-1).tolist() == [1]
    assert not scores.isnan().any()
    assert not scores.isposinf().any()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.floats(0.0, 5.0))
def test_the_rule_is_that_of_the_papers_code(seed: int, weight: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    scores = contrastive_scores(one, other, weight)
    factor = weight / (1.0 + weight)
    torch.testing.assert_close(scores / (1.0 + weight), one - factor * other)
    torch.testing.assert_close(contrastive_scores(one, one, weight), one)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_contrast_is_part_of_the_key_only_if_there_is_one() -> None:
    keys = {Request("a").key(), make(("a", "b")).key(), make(("a", "c")).key(), make(("a", "b"), 2.0).key()}
    assert len(keys) == 4
    assert "contrast" not in Request("a").to_dict()
    assert make(("a", "b"), 1).key() == make(("a", "b"), 1.0).key()


def test_a_contrast_needs_logits_and_a_prompt() -> None:
    assert make(("a", "b")).needs == {"logits"}
    assert Request("a", answer_start="b").needs == {"answer_start"}
    assert Request("a").needs == frozenset()
    recorded = RecordedGenerator([{"prompt": "a", "answer": "b"}])
    for request, named in ((make(("a", "b")), "logits"), (Request("a", answer_start="b"), "answer_start")):
        with pytest.raises(ConfigurationError, match=f"this request needs {named}, and RecordedGenerator gives only"):
            recorded.generate([request])
    with pytest.raises(ConfigurationError, match="has a prompt, not messages"):
        Request(messages=[{"role": "user", "content": "a"}], contrast=Contrast("b"))
    with pytest.raises(ConfigurationError, match="weight of a contrast is 0"):
        Contrast("b", 0)
