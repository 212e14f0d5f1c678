"""The recorded generator answers what it has and never invents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Origin, Request, Sampling
from kdlightning.generation.recorded import RecordedGenerator

SUMS = [
    {"question": "What is 1 + 1?", "why": "One and one.", "result": 2.0},
    {"question": "What is 2 + 2?", "why": ["Two twice.", "Double two."], "result": ["4", "5"]},
    {"question": "What is 3 + 3?", "why": "Three twice.", "result": None},
]
STEPS = {"rationale": "why", "answer": "result"}


def ask(question: str, step: str = "", given: dict[str, str] | None = None, **options: int) -> Request:
    return Request(f"Q: {question}\nA:", origin=Origin(question, step, given or {}), **options)


def test_bare_prompts_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": " Hello ", "answer": "World"}))
    generator = RecordedGenerator(path)
    assert generator.generate([Request("Hello")])[0].texts == ["World"]
    assert generator.generate([Request(messages=[{"role": "user", "content": "Hello"}])])[0].texts == ["World"]


def test_steps_have_their_own_fields_and_samples_stay_together() -> None:
    generator = RecordedGenerator(SUMS, "question", STEPS)
    (rationales,) = generator.generate([ask("What is 2 + 2?", "rationale", samples=2)])
    assert rationales.texts == ["Two twice.", "Double two."]
    for rationale, result in (("Two twice.", "4"), (" Double two.\n", "5")):
        (answer,) = generator.generate([ask("What is 2 + 2?", "answer", {"rationale": rationale})])
        assert answer.texts == [result]


def test_a_later_step_from_another_text_is_refused() -> None:
    generator = RecordedGenerator(SUMS, "question", STEPS)
    (answer,) = generator.generate([ask("What is 1 + 1?", "answer", {"rationale": "Something else."})])
    assert not answer.completions
    assert "0 recorded answers" in answer.failures[0]


def test_records_of_one_prompt_are_samples() -> None:
    generator = RecordedGenerator([{"prompt": "a", "answer": text} for text in ("x", "y")])
    (answer,) = generator.generate([Request("a", samples=3)])
    assert answer.texts == ["x", "y"]
    assert set(answer.failures) == {2}
    assert "number 3" in answer.failures[2]
    (second,) = generator.generate([Request("a", first_sample=1)])
    assert second.completions.keys() == {1}
    assert second.texts == ["y"]


def test_unknown_prompt_is_refused_with_the_nearest() -> None:
    generator = RecordedGenerator(SUMS, "question", STEPS)
    (answer,) = generator.generate([ask("What is 2 + 3 + 2?", "rationale")])
    assert not answer.completions
    assert "no recorded answer to 'What is 2 + 3 + 2?'" in answer.failures[0]
    assert "nearest is 'What is" in answer.failures[0]
    assert "\n" not in answer.failures[0]


def test_empty_answers_are_refused_and_numbers_are_texts() -> None:
    generator = RecordedGenerator(SUMS, "question", STEPS)
    first, last = generator.generate([ask("What is 1 + 1?", "answer"), ask("What is 3 + 3?", "answer")])
    assert first.texts == ["2.0"]
    assert "is empty" in last.failures[0]


def test_a_step_without_field_is_a_wrong_option() -> None:
    generator = RecordedGenerator(SUMS, "question", {"rationale": "why"})
    with pytest.raises(ConfigurationError, match="no field for the step 'answer'.*rationale"):
        generator.generate([ask("What is 1 + 1?", "answer", {"rationale": "One and one."})])


@pytest.mark.parametrize(
    ("records", "fields", "named"),
    [
        (SUMS, ("qestion", "why"), "question"),
        (SUMS, ("question", "whi"), "why"),
        (SUMS, ("question", {}), "no field"),
        ([{"q": "a", "x": ["1"], "y": ["1", "2"]}], ("q", {"one": "x", "two": "y"}), "1 and 2 samples"),
        ([{"q": "a", "x": {"z": 1}}], ("q", "x"), "a dict"),
    ],
)
def test_wrong_fields_are_named(records: list, fields: tuple, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RecordedGenerator(records, *fields)


def test_other_records_are_another_teacher() -> None:
    one, same, other = (RecordedGenerator(rows, "question", STEPS) for rows in (SUMS, list(SUMS), SUMS[:2]))
    assert one.identity == same.identity != other.identity


@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=5), st.text(), st.integers(1, 3))
def test_every_answer_was_recorded(recorded: dict[str, str], question: str, samples: int) -> None:
    records = [{"prompt": prompt, "answer": text} for prompt, text in recorded.items()]
    request = Request(question, samples=samples, sampling=Sampling(temperature=1.0))
    (answer,) = RecordedGenerator(records).generate([request])
    known = {text for prompt, text in recorded.items() if prompt.strip() == question.strip()}
    assert set(answer.texts) <= known
    assert answer.completions.keys() | answer.failures.keys() == set(range(samples))
    assert not answer.completions.keys() & answer.failures.keys()
