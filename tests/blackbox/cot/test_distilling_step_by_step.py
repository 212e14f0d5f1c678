"""Distilling step-by-step: what it keeps, its labels, its two prefixes, and a run from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from
from kdlightning.blackbox.cot.distilling_step_by_step import DistillingStepByStep
from kdlightning.blackbox.cot.fine_tune_cot import EMPTY, NO_TEXT, WRONG
from kdlightning.blackbox.cot.two_tasks import CHAIN
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.question_answering import NO_GOLD
from kdlightning.blackbox.report import count_sources
from kdlightning.errors import ConfigurationError
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import load_records
from kdlightning.generation.store import CompletionStore
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

FIELDS = {"rationale": "why", "answer": "said"}
ANOTHER, NONE = f"{CHAIN} to another answer", f"{CHAIN} without an answer"
ROWS: list[dict[str, Any]] = [
    {"answer": 3, "why": "One and two.", "said": 3},
    {"answer": 3, "why": "One less.", "said": 1},
    {"answer": 3, "why": "Hm.", "said": "who knows"},
    {"answer": 3, "why": "Well.", "said": None},
    {"answer": 3, "why": " ", "said": 3},
    {"answer": 3, "why": None, "said": 3},
    {"answer": None, "why": "Five.", "said": 5},
]


def asked(
    rows: list[dict[str, Any]] = ROWS, **options: Any
) -> tuple[DistillingStepByStep, list[Problem], list[Outcome]]:
    method = DistillingStepByStep(**{"kind": "number", "answer_step": True} | options)
    records = [{"question": f"q{n}", **row} for n, row in enumerate(rows)]
    problems = problems_from(records, method, "question", "answer")
    outcomes, _ = collect(method, problems, RecordedGenerator(records, "question", FIELDS), progress=False)
    return method, problems, outcomes


def labels(method: DistillingStepByStep, problems: list[Problem], outcomes: list[Outcome]) -> list[list[str]]:
    made = [method.examples(each, [o for o in outcomes if o.record == each.number])["student"] for each in problems]
    return [[example.label for example in row] for row in made]


def test_rationales_are_kept_whatever_they_lead_to() -> None:
    method, problems, outcomes = asked()
    assert [outcome.reason for outcome in outcomes] == [KEPT, KEPT, KEPT, KEPT, EMPTY, NO_TEXT, NO_GOLD]
    assert count_sources(outcomes) == {NONE: 2, CHAIN: 1, ANOTHER: 1}
    assert [outcome.prediction for outcome in outcomes[:4]] == ["3", "1", None, None]
    assert labels(method, problems, outcomes) == [
        [" 3", " One and two."], [" 3", " One less."], [" 3", " Hm."], [" 3", " Well."], [" 3"], [" 3"], [],
    ]  # fmt: skip


def test_a_filter_keeps_right_ones_and_all_gold_answers() -> None:
    method, problems, outcomes = asked(keep_wrong=False)
    assert [outcome.kept for outcome in outcomes] == [True] + [False] * 6
    assert sum(count_reasons(outcomes).values()) == len(ROWS)
    assert labels(method, problems, outcomes) == [[" 3", " One and two."], *([[" 3"]] * 5), []]
    method, problems, outcomes = asked(keep_wrong=False, answers_of_all=False)
    assert labels(method, problems, outcomes) == [[" 3", " One and two."], *([[]] * 6)]


def test_the_teacher_can_label_with_or_without_a_filter() -> None:
    method, problems, outcomes = asked(labels="teacher")
    assert [outcome.kept for outcome in outcomes] == [True, True, False, False, False, False, True]
    assert count_sources(outcomes) == {CHAIN: 2, ANOTHER: 1}
    assert labels(method, problems, outcomes) == [
        [" 3", " One and two."], [" 1", " One less."], [], [], [], [], [" 5", " Five."],
    ]  # fmt: skip
    method, problems, outcomes = asked(labels="teacher", keep_wrong=False)
    assert [o.reason for o in outcomes if o.record in (1, 6)] == [WRONG, NO_GOLD]
    assert labels(method, problems, outcomes) == [[" 3", " One and two."], *([[]] * 6)]


def test_both_tasks_have_the_papers_prefixes() -> None:
    record = {"choices": ["sea", "desert"]}
    problem = Problem(0, "Where do boats go?", "sea", record)
    outcomes = [Outcome(0, 0, KEPT, {"rationale": "Boats float."}, "desert")]
    method = DistillingStepByStep(choices_field="choices", student_kind="encoder_decoder")
    one, other = method.examples(problem, outcomes)["student"]
    assert (one.prompt, one.label, one.tag) == ("predict: Where do boats go?\n(A) sea (B) desert", "sea", "answer")
    assert (other.prompt, other.label) == ("explain: Where do boats go?\n(A) sea (B) desert", "Boats float.")
    assert method.tag_weights == {"answer": 0.5, "explanation": 0.5}
    assert next(method.infer([problem])).requests[0].prompt == one.prompt
    (request,) = next(method.collect([problem])).requests
    assert request.prompt == "Q: Where do boats go?\nAnswer Choices:\n(a) sea\n(b) desert\nA:"
    assert request.sampling.max_tokens == 256


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.fixed_dictionaries({
        "answer": st.sampled_from([3, None]), "why": st.sampled_from(["why", "", None]),
        "said": st.sampled_from([3, 4, "", None]),
    }), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(["gold", "teacher"]),
)  # fmt: skip
def test_reasons_always_add_up(rows: list[dict[str, Any]], keep_wrong: bool, taught: str) -> None:
    method, problems, outcomes = asked(rows, keep_wrong=keep_wrong, labels=taught)
    assert [(outcome.record, outcome.sample) for outcome in outcomes] == [(n, 0) for n in range(len(rows))]
    assert sum(count_reasons(outcomes).values()) == len(rows)
    assert sum(count_sources(outcomes).values()) == sum(outcome.kept for outcome in outcomes)
    for row, outcome, made in zip(rows, outcomes, labels(method, problems, outcomes), strict=True):
        right = row["answer"] == 3 and row["said"] == 3
        label = row["answer"] if taught == "gold" else row["said"] or None
        fits = right or (keep_wrong and label is not None and (taught == "teacher" or row["answer"] is not None))
        assert outcome.kept == bool(row["why"] and fits)
        alone = taught == "gold" and row["answer"] is not None
        assert made == ([f" {label}", f" {row['why']}"] if outcome.kept else [" 3"] if alone else [])


def test_half_a_store_is_asked_for_the_rest_alone() -> None:
    method, problems, _ = asked()
    records = [{"question": f"q{n}", **row} for n, row in enumerate(ROWS)]
    teacher, store = RecordedGenerator(records, "question", FIELDS), CompletionStore(":memory:")
    collect(method, problems[:2], teacher, store, progress=False)
    outcomes, after = collect(method, problems, teacher, store, progress=False)
    assert [(each.asked, each.reused) for each in after] == [(4, 2), (2, 2)]
    assert outcomes == asked()[2]


def test_real_rationales_are_all_kept(data_folder: Path) -> None:
    records = load_records(data_folder / "svamp_palm_cot" / "train.jsonl.gz", "test")
    method = DistillingStepByStep("number", answer_step=True)
    teacher = RecordedGenerator(records, "question", {"rationale": "llm_rationale", "answer": "llm_answer"})
    outcomes, _ = collect(method, problems_from(records, method, "question", "answer"), teacher, progress=False)
    assert count_reasons(outcomes) == {KEPT: 800}
    assert count_sources(outcomes) == {CHAIN: 593, ANOTHER: 172, NONE: 35}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": "llm"}, "labels is gold or teacher"),
        ({"alpha": 2}, "DistillingStepByStep: alpha"),
        ({"demonstrations": []}, "DistillingStepByStep: demonstrations: there are no records"),
        ({"rationale_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        DistillingStepByStep(**options)


def test_from_records_to_predictions(trainer: Any, tmp_path: Path, sums: Callable[[int], list]) -> None:
    config = {"vocab_size": 300, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    ends = {"decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 1}
    student = transformers_model(architecture="AutoModelForSeq2SeqLM", model_type="t5", config=config | ends)
    data = BlackBoxData(
        DistillingStepByStep("number", answer_step=True, student_kind="encoder_decoder", inference_tokens=4),
        sums(30),
        recorded_fields=FIELDS,
        store=str(tmp_path / "text.sqlite"),
        vocab_size=300,
        test_split=6,
        val_split=6,
        batch_size=8,
        progress=False,
    )
    module = BlackBoxDistillation(student)
    fitted = trainer(max_epochs=1)
    fitted.fit(module, datamodule=data)
    assert {"train/loss_answer", "train/loss_explanation", "val/acc"} <= set(fitted.callback_metrics)
    fitted.test(module, datamodule=data)
    (file,) = tmp_path.rglob("test_predictions*.jsonl")
    predictions = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["record"] for row in predictions] == [problem.number for problem in data.problems["test"]]
