"""A small teacher learns to explain the answers that it is given."""

from __future__ import annotations

from typing import Any

import pytest

from kdlightning.blackbox.base import KEPT, Problem, collect, count_reasons, run_rounds
from kdlightning.blackbox.cot.fine_tune_cot import EMPTY, NO_ANSWER, NO_TEXT
from kdlightning.blackbox.cot.rationalization import Rationalization
from kdlightning.generation.recorded import RecordedGenerator

RECORDS = [
    {"question": "What flies?", "choices": ["bird", "stone"], "answer": "bird", "why": "Birds\nfly.", "said": "bird"},
    {"question": "What sinks?", "choices": ["bird", "stone"], "answer": "stone", "why": "It swims.", "said": "bird"},
    {"question": "What sings?", "choices": ["bird", "stone"], "answer": "bird", "why": "  ", "said": "bird"},
    {"question": "What rolls?", "choices": ["bird", "stone"], "answer": "stone", "why": "It is.", "said": " "},
    {"question": "What runs?", "choices": ["bird", "stone"], "answer": "bird", "why": None, "said": "bird"},
]


def problems(method: Rationalization) -> list[Problem]:
    return [Problem(n, row["question"], row["answer"], row) for n, row in enumerate(RECORDS)]


def test_every_rationale_is_kept_with_the_answer_that_it_led_to() -> None:
    method = Rationalization(choices_field="choices")
    teacher = RecordedGenerator(RECORDS, "question", {"rationale": "why", "answer": "said"})
    outcomes, _ = collect(method, problems(method), teacher, progress=False)
    assert [each.reason for each in outcomes] == [KEPT, KEPT, EMPTY, NO_ANSWER, NO_TEXT]
    assert sum(count_reasons(outcomes).values()) == len(RECORDS)
    made = [
        method.examples(each, [outcome])["student"] for each, outcome in zip(problems(method), outcomes, strict=True)
    ]
    asked = "Q: What {}?\nAnswer Choices:\n(a) bird\n(b) stone\nA: The answer is {}."
    assert [(each.prompt, each.label) for row in made for each in row] == [
        (asked.format("flies", "bird"), " Birds fly."),
        (asked.format("sinks", "bird"), " It swims."),
    ]


def test_inference_asks_for_the_right_answers_rationale() -> None:
    method = Rationalization(choices_field="choices", rationale_tokens=9)
    rounds = method.infer(problems(method)[:3])
    current = next(rounds)
    assert current.requests[1].prompt == method.prompt(problems(method)[1])
    assert current.requests[1].prompt.endswith("The answer is stone.")
    assert (current.requests[0].sampling.max_tokens, current.requests[0].stop) == (9, ("\n",))
    said = [{"prompt": request.prompt, "answer": text} for request, text in zip(
        current.requests, [" A Bird, of course.", " Stones sink.", " no"], strict=True
    )]  # fmt: skip
    predictions, _ = run_rounds(
        method.infer(problems(method)[:3]), {"student": RecordedGenerator(said)}, progress=False
    )
    assert [(each.prediction, each.correct) for each in predictions] == [("bird", True), (None, False), (None, False)]
    assert method.metrics(predictions) == {"acc": pytest.approx(1 / 3)}


def test_encoder_decoders_write_without_a_first_space() -> None:
    method: Any = Rationalization(student_kind="encoder_decoder")
    outcomes, _ = collect(
        method,
        problems(method)[:1],
        RecordedGenerator(RECORDS, "question", {"rationale": "why", "answer": "said"}),
        progress=False,
    )
    (example,) = method.examples(problems(method)[0], outcomes)["student"]
    assert (example.prompt, example.label) == ("Q: What flies?\nA: The answer is bird.", "Birds fly.")
