"""Fine-tune-CoT: its prompts, its filter, its formats, its inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.answers import split_at_trigger
from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from
from kdlightning.blackbox.cot.fine_tune_cot import EMPTY, NO_ANSWER, NO_GOLD, NO_TEXT, WRONG, FineTuneCoT
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request
from kdlightning.generation.recorded import RecordedGenerator

FIELDS = {"rationale": "why", "answer": "said"}
QUESTION = Problem(0, "What is 40 + 2?", "42.0")


def answered(requests: list[Request], *texts: list[str]) -> list[Answer]:
    return [
        Answer(request, {number: Completion(text) for number, text in enumerate(row)})
        for request, row in zip(requests, texts, strict=True)
    ]


def finish(rounds: Any, answers: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(answers)
    return end.value.value


def test_the_teacher_is_asked_in_two_steps() -> None:
    rounds = FineTuneCoT().collect([QUESTION])
    first = next(rounds)
    (request,) = first.requests
    assert request.prompt == "Q: What is 40 + 2?\nA: Let's think step by step."
    assert (request.samples, request.sampling.max_tokens, request.sampling.greedy) == (1, 128, True)
    second = rounds.send(answered(list(first.requests), [" Forty and two.\n"]))
    (request,) = second.requests
    assert request.prompt == (
        "Q: What is 40 + 2?\nA: Let's think step by step. Forty and two.\nTherefore, the answer is"
    )
    assert request.sampling.greedy
    (outcome,) = finish(rounds, answered(list(second.requests), [" 42. And 43 is not."]))
    assert outcome == Outcome(0, 0, KEPT, {"rationale": "Forty and two.", "answer": "42. And 43 is not."}, "42")


def test_diverse_reasoning_draws_samples_at_the_papers_temperature() -> None:
    method = FineTuneCoT(samples=3)
    rounds = method.collect([QUESTION])
    first = next(rounds)
    assert (first.requests[0].samples, first.requests[0].sampling.temperature) == (3, 0.7)
    second = rounds.send(answered(list(first.requests), ["a", "b", " "]))
    assert len(second.requests) == 2
    assert all(request.samples == 1 and request.sampling.greedy for request in second.requests)
    outcomes = finish(rounds, answered(list(second.requests), ["42"], ["41"]))
    assert [(o.sample, o.reason, o.prediction) for o in outcomes] == [
        (0, KEPT, "42"),
        (1, WRONG, "41"),
        (2, EMPTY, None),
    ]
    assert len(method.examples(QUESTION, outcomes)["student"]) == 1


def test_every_reason_occurs_and_they_add_up() -> None:
    problems = [Problem(n, f"q{n}", "42" if n else None) for n in range(6)]
    rounds = FineTuneCoT().collect(problems)
    first = next(rounds)
    assert [request.origin.about for request in first.requests] == ["q1", "q2", "q3", "q4", "q5"]
    answers = answered(list(first.requests), ["why"], ["why"], ["why"], ["  "], [])
    answers[4].failures[0] = "timed out"
    second = rounds.send(answers)
    outcomes = finish(rounds, answered(list(second.requests), ["42.00"], ["7"], ["who knows"]))
    assert [outcome.reason for outcome in outcomes] == [NO_GOLD, KEPT, WRONG, NO_ANSWER, EMPTY, NO_TEXT]
    assert outcomes[5].detail == "timed out"
    assert sum(count_reasons(outcomes).values()) == 6


def test_a_failed_second_step_is_a_missing_answer() -> None:
    rounds = FineTuneCoT().collect([QUESTION])
    second = rounds.send(answered(list(next(rounds).requests), ["why"]))
    (outcome,) = finish(rounds, [Answer.refused(second.requests[0], "refused")])
    assert (outcome.reason, outcome.detail, outcome.texts) == (NO_TEXT, "refused", {"rationale": "why"})


def test_a_question_that_the_teacher_goes_on_with_is_not_the_answers() -> None:
    rounds = FineTuneCoT().collect([QUESTION])
    second = rounds.send(answered(list(next(rounds).requests), ["Forty and two."]))
    (outcome,) = finish(rounds, answered(list(second.requests), [" 42.\n\nQ: What is 1 + 1?\nA: The answer is 2."]))
    assert (outcome.reason, outcome.prediction) == (KEPT, "42")


def test_texts_that_end_in_their_answer_need_one_step() -> None:
    method = FineTuneCoT(answer_step=False)
    problem = Problem(0, "q", "48/2 = 24\n#### 72")
    rounds = method.collect([problem])
    first = next(rounds)
    (outcome,) = finish(rounds, answered(list(first.requests), ["48/2 = 24 in May.\n24+48 = 72.\n#### 72"]))
    assert (outcome.reason, outcome.prediction) == (KEPT, "72")
    assert outcome.texts == {"rationale": "48/2 = 24 in May.\n24+48 = 72."}
    (example,) = method.examples(problem, [outcome])["student"]
    assert example.label == " 48/2 = 24 in May.\n24+48 = 72. --> 72"


@pytest.mark.parametrize(
    ("text", "rationale", "rest"),
    [
        ("One. Two.\n#### 3", "One. Two.", "#### 3"),
        ("One. So the answer is 3.", "One.", "So the answer is 3."),
        ("One\nTherefore, the answer is 3", "One", "Therefore, the answer is 3"),
        ("One so the answer is 3", "One so", "the answer is 3"),
        ("One. Answer: 3", "One.", "Answer: 3"),
        ("One. Two.", "One. Two.", ""),
        ("#### 3", "", "#### 3"),
        ("So the answer is 3.", "", "So the answer is 3."),
    ],
)
def test_a_rationale_ends_before_its_answer(text: str, rationale: str, rest: str) -> None:
    assert split_at_trigger(text) == (rationale, rest)


def test_labels_have_the_papers_formats() -> None:
    outcomes = [Outcome(0, 0, KEPT, {"rationale": "Forty and two."}, "42"), Outcome(0, 1, WRONG, {"rationale": "x"})]
    (decoder,) = FineTuneCoT().examples(QUESTION, outcomes)["student"]
    assert (decoder.prompt, decoder.label) == ("What is 40 + 2? ###", " Forty and two. --> 42")
    method = FineTuneCoT(student_kind="encoder_decoder")
    (encoder,) = method.examples(QUESTION, outcomes)["student"]
    assert (encoder.prompt, encoder.label) == ("What is 40 + 2?", "Forty and two. --> 42")
    assert method.encoder_decoder


def test_inference_is_greedy_and_reads_what_follows_the_last_arrow() -> None:
    problems = [QUESTION, Problem(1, "q", "5"), Problem(2, "q", None), Problem(3, "q", "7")]
    rounds = FineTuneCoT(inference_tokens=99).infer(problems)
    current = next(rounds)
    assert current.role == "student"
    assert current.requests[0].prompt == "What is 40 + 2? ###"
    assert current.requests[0].sampling.greedy
    assert current.requests[0].sampling.max_tokens == 99
    texts = [" 1 --> 2, no --> 42 and 9"], [" 4, so 5"], [" --> 5"], [""]
    predictions = finish(rounds, answered(list(current.requests), *texts))
    assert [(p.prediction, p.gold, p.correct) for p in predictions] == [
        ("42", "42", True), ("5", "5", True), ("5", None, False), (None, "7", False),
    ]  # fmt: skip
    assert FineTuneCoT().metrics(predictions) == {"acc": pytest.approx(2 / 3)}  # of those with a gold answer


@pytest.mark.parametrize(
    ("kind", "gold", "said", "label"),
    [
        ("choice", "(b)", "(B)", "B"),
        ("yes_no", True, "Yes.", "yes"),
        ("yes_no", False, "no", "no"),
        ("text", " New York ", "new  york", "New York"),
    ],
)
def test_other_kinds_of_answers(kind: Any, gold: Any, said: str, label: str) -> None:
    method = FineTuneCoT(kind)
    problem = Problem(0, "q", method.read_gold(gold))
    rounds = method.collect([problem])
    second = rounds.send(answered(list(next(rounds).requests), ["why"]))
    (outcome,) = finish(rounds, answered(list(second.requests), [f" {said}"]))
    assert outcome.kept
    assert method.examples(problem, [outcome])["student"][0].label == f" why --> {label}"


def test_templates_can_be_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ record.topic }}: {{ question }}")
    rounds = FineTuneCoT(rationale_prompt=str(mine)).collect([Problem(0, "q", "1", {"topic": "sums"})])
    assert next(rounds).requests[0].prompt == "sums: q"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "numbers"}, "number"),
        ({"kind": "choice", "choices": "1-5"}, "choices"),
        ({"samples": 0}, "samples"),
        ({"student_kind": "encoder"}, "student_kind"),
        ({"temperature": -1.0}, "temperature"),
        ({"rationale_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        FineTuneCoT(**options)


def test_recorded_text_is_filtered(sums: Callable[[int], list], problems: Any) -> None:
    records, method = sums(35), FineTuneCoT()
    teacher = RecordedGenerator(records, "question", FIELDS)
    outcomes, results = collect(method, problems(method, records), teacher, progress=False)
    assert [outcome.record for outcome in outcomes] == list(range(35))
    for outcome, record in zip(outcomes, records, strict=True):
        expected = NO_TEXT if record["said"] is None else KEPT if record["said"] == record["answer"] else WRONG
        assert outcome.reason == expected
    assert count_reasons(outcomes)[NO_TEXT] == 5 == len(results[1].failures)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["42", "41", "", None]), st.sampled_from(["why", "", None])), max_size=12))
def test_reasons_always_add_up(rows: list[tuple[str | None, str | None]]) -> None:
    records = [{"question": f"q{n}", "answer": "42", "why": why, "said": said} for n, (said, why) in enumerate(rows)]
    method = FineTuneCoT()
    found = problems_from(records, method, "question", "answer")
    teacher = RecordedGenerator(records or [{"question": "", "why": "", "said": ""}], "question", FIELDS)
    outcomes, _ = collect(method, found, teacher, progress=False)
    assert sum(count_reasons(outcomes).values()) == len(rows) == len({outcome.record for outcome in outcomes})
    assert [outcome.kept for outcome in outcomes] == [bool(why) and said == "42" for said, why in rows]


def test_real_rationales_are_filtered(data_folder: Path) -> None:
    from kdlightning.generation.records import load_records

    records = load_records(data_folder / "svamp_palm_cot" / "train.jsonl.gz", "test")
    method = FineTuneCoT()
    teacher = RecordedGenerator(records, "question", {"rationale": "llm_rationale", "answer": "llm_answer"})
    outcomes, _ = collect(method, problems_from(records, method, "question", "answer"), teacher, progress=False)
    # 74.1 % of the teacher's answers are right, and 35 are missing.
    assert count_reasons(outcomes) == {KEPT: 593, WRONG: 172, NO_TEXT: 35}


def test_real_chains_that_end_in_their_answer_are_all_kept(data_folder: Path) -> None:
    from kdlightning.generation.records import load_records

    records = load_records(data_folder / "gsm8k" / "train.jsonl.gz", "test")[:500]
    method = FineTuneCoT(answer_step=False)
    found = problems_from(records, method, "question", "answer")
    outcomes, _ = collect(
        method, found, RecordedGenerator(records, "question", {"rationale": "answer"}), progress=False
    )
    assert count_reasons(outcomes) == {KEPT: 500}
    label = method.examples(found[0], outcomes[:1])["student"][0].label
    assert label.endswith("clips altogether in April and May. --> 72")
    assert "####" not in label
