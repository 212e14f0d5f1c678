"""MT-CoT: its three sources, its filters, its two tasks in three set-ups, its inference, and a run from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from
from kdlightning.blackbox.cot.fine_tune_cot import EMPTY, NO_ANSWER, NO_TEXT, WRONG
from kdlightning.blackbox.cot.mt_cot import HUMAN, NO_HUMAN, RATIONALIZATION, MTCoT
from kdlightning.blackbox.cot.rationalization import Rationalization
from kdlightning.blackbox.cot.two_tasks import CHAIN, offered
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.question_answering import NO_GOLD
from kdlightning.blackbox.report import count_sources, summary
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import load_records
from kdlightning.generation.store import CompletionStore
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

RECORD = {"question": "Where do boats go?", "choices": ["sea", "desert", "bank"], "answer": "sea"}
QUESTION = Problem(0, RECORD["question"], "sea", RECORD)
SHOWN = [{"question": "Who barks?", "choices": ["dog", "fish"], "answer": "dog", "rationale": "Fish are mute."}]
FIELDS = {"rationale": "why", "answer": "said", "rationalization": "given"}


def make(**options: Any) -> MTCoT:
    return MTCoT(**{"choices_field": "choices"} | options)


def answered(requests: Sequence[Request], *texts: str | None) -> list[Answer]:
    return [
        Answer.refused(request, "timed out") if text is None else Answer(request, {0: Completion(text)})
        for request, text in zip(requests, texts, strict=True)
    ]


def finish(rounds: Any, answers: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(answers)
    return end.value.value


# -- the teacher -------------------------------------------------------------------------------------------------------


def test_a_chain_of_thought_follows_demonstrations_that_reason() -> None:
    rounds = make(source="cot", demonstrations=SHOWN).collect([QUESTION])
    (request,) = (first := next(rounds)).requests
    assert request.prompt == (
        "Q: Who barks?\nAnswer Choices:\n(a) dog\n(b) fish\nA: Fish are mute. So the answer is dog.\n\n"
        "Q: Where do boats go?\nAnswer Choices:\n(a) sea\n(b) desert\n(c) bank\nA:"
    )
    assert (request.samples, request.sampling.max_tokens, request.sampling.greedy) == (1, 128, True)
    assert request.stop == ("\nQ:",)
    assert (first.role, request.origin.about, request.origin.step) == ("teacher", RECORD["question"], "rationale")
    (outcome,) = finish(rounds, answered(first.requests, " Boats float. So the answer is (a) sea.\n"))
    texts = {"source": CHAIN, "rationale": "Boats float."}
    assert outcome == Outcome(0, 0, KEPT, texts, "sea")


def test_questions_without_choices_are_asked_as_they_are() -> None:
    rounds = MTCoT("number", source="cot").collect([Problem(0, " 1 + 1? ", "2.0")])
    (request,) = (first := next(rounds)).requests
    assert request.prompt == "Q: 1 + 1?\nA:"
    (outcome,) = finish(rounds, answered(first.requests, "Two ones. So the answer is 2."))
    assert (outcome.reason, outcome.prediction, outcome.texts["rationale"]) == (KEPT, "2", "Two ones.")


def test_an_answer_can_be_asked_for_apart() -> None:
    rounds = make(source="cot", answer_step=True, rationale_tokens=9).collect([QUESTION])
    first = next(rounds)
    second = rounds.send(answered(first.requests, "Boats float."))
    assert second.requests[0].prompt == f"{first.requests[0].prompt} Boats float. So the answer is"
    (outcome,) = finish(rounds, answered(second.requests, " Sea"))
    texts = {"source": CHAIN, "rationale": "Boats float.", "answer": "Sea"}
    assert outcome == Outcome(0, 0, KEPT, texts, "sea")


def test_a_rationalization_is_given_the_right_answer() -> None:
    rounds = make(source="rationalization", demonstrations=SHOWN).collect([QUESTION, Problem(1, "q", None, RECORD)])
    (request,) = (first := next(rounds)).requests
    assert request.prompt == (
        "Q: Who barks?\nAnswer Choices:\n(a) dog\n(b) fish\nA: The answer is dog. Fish are mute.\n\n"
        "Q: Where do boats go?\nAnswer Choices:\n(a) sea\n(b) desert\n(c) bank\nA: The answer is sea."
    )
    assert (request.origin.step, request.stop) == ("rationalization", ("\nQ:",))
    outcomes = finish(rounds, answered(first.requests, " Boats float. "))
    texts = {"source": RATIONALIZATION, "rationale": "Boats float."}
    assert outcomes == [Outcome(0, 0, KEPT, texts, "sea"), Outcome(1, 0, NO_GOLD)]


def test_a_local_teacher_is_asked_as_it_was_trained() -> None:
    (request,) = next(make(source="rationalization").collect([QUESTION])).requests
    assert request.prompt == Rationalization(choices_field="choices").prompt(QUESTION)


def test_both_sources_rationalize_only_what_is_unexplained() -> None:
    problems = [Problem(n, f"q{n}", None if n == 5 else "sea", RECORD) for n in range(6)]
    rounds = make().collect(problems)
    first = next(rounds)
    said = ["It. So the answer is sea.", "It. So the answer is bank.", "It floats.", " So the answer is sea.", None]
    second = rounds.send(answered(first.requests, *said))
    assert [request.origin.about for request in second.requests] == ["q1", "q2", "q3", "q4"]
    outcomes = finish(rounds, answered(second.requests, "Boats float.", "  ", None, "Water."))
    assert [(o.record, o.sample, o.reason) for o in outcomes] == [
        (0, 0, KEPT), (1, 0, WRONG), (1, 1, KEPT), (2, 0, NO_ANSWER), (2, 1, EMPTY),
        (3, 0, EMPTY), (3, 1, NO_TEXT), (4, 0, NO_TEXT), (4, 1, KEPT), (5, 0, NO_GOLD),
    ]  # fmt: skip
    assert [o.detail for o in outcomes if o.reason == NO_TEXT] == ["timed out"] * 2
    assert sum(count_reasons(outcomes).values()) == 10
    assert count_sources(outcomes) == {RATIONALIZATION: 2, CHAIN: 1}
    assert summary(outcomes).startswith("3 of 10 answers kept (2 rationalization, 1 chain of thought); dropped: 2 ")


def test_human_explanations_are_called_so_and_ask_nobody() -> None:
    records = [RECORD | {"human": text} for text in ("Boats swim.", " ", None)]
    method = make(source="rationalization", human_field="human")
    with pytest.raises(StopIteration) as end:
        next(method.collect(problems_from(records, method, "question", "answer")))
    outcomes = end.value.value
    assert outcomes[0] == Outcome(0, 0, KEPT, {"source": HUMAN, "rationale": "Boats swim."}, "sea")
    assert [outcome.reason for outcome in outcomes[1:]] == [NO_HUMAN, NO_HUMAN]
    rounds = make(human_field="human").collect(problems_from(records[:1], method, "question", "answer"))
    outcomes = finish(rounds, answered(next(rounds).requests, "It. So the answer is bank."))
    assert [(o.sample, o.reason, o.texts["source"]) for o in outcomes] == [(0, WRONG, CHAIN), (1, KEPT, HUMAN)]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("sea.", "sea"), ("(a)", "sea"), ("(B) desert.", "desert"), ("c", "bank"), ("B.", "desert"), (' "Sea" ', "sea"),
        ("a bank", "bank"), ("sea. I am sure.", "sea"), ("(a). I am sure.", "sea"), ("(d)", "(d)"), ("lake", "lake"),
        ("a lake", "a lake"), ("", ""),
    ],
)  # fmt: skip
def test_an_answer_means_a_choice_by_words_or_letter(said: str, meant: str) -> None:
    assert offered(said, RECORD["choices"]) == meant


def test_half_a_store_is_asked_for_the_rest_alone() -> None:
    records = [
        RECORD | {"question": f"q{n}", "why": f"It is {n}.", "said": "sea" if n % 3 else "bank", "given": f"So {n}."}
        for n in range(9)
    ]
    method, store = make(answer_step=True), CompletionStore(":memory:")
    problems = problems_from(records, method, "question", "answer")
    teacher = RecordedGenerator(records, "question", FIELDS)
    _, before = collect(method, problems[:4], teacher, store, progress=False)
    outcomes, after = collect(method, problems, teacher, store, progress=False)
    assert [(each.title, each.asked, each.reused) for each in before] == [
        ("Rationales", 4, 0), ("Answers", 4, 0), ("Rationalizations", 2, 0),
    ]  # fmt: skip
    assert [(each.asked, each.reused) for each in after] == [(5, 4), (5, 4), (1, 2)]
    undisturbed, _ = collect(method, problems, teacher, progress=False)
    assert outcomes == undisturbed
    assert count_sources(outcomes) == {CHAIN: 6, RATIONALIZATION: 3}


ROW = st.tuples(
    st.sampled_from(["sea", "bank", "", None]),
    st.sampled_from(["why", "", None]),
    st.sampled_from(["because", " ", None]),
    st.sampled_from(["sea", None]),
)


@settings(deadline=None, max_examples=30)
@given(st.lists(ROW, min_size=1, max_size=8), st.sampled_from(["cot", "rationalization", "both"]), st.booleans())
def test_reasons_always_add_up(rows: list[tuple[str | None, ...]], source: Any, human: bool) -> None:
    names = ("said", "why", "given", "answer")
    records = [RECORD | dict(zip(names, row, strict=True)) | {"question": f"q{n}"} for n, row in enumerate(rows)]
    human_field = "given" if human and source != "cot" else None
    method = make(source=source, answer_step=True, human_field=human_field, answers_of_all=False)
    problems = problems_from(records, method, "question", "answer")
    outcomes, _ = collect(method, problems, RecordedGenerator(records, "question", FIELDS), progress=False)
    assert sum(count_reasons(outcomes).values()) == len(outcomes)
    assert {outcome.record for outcome in outcomes} == set(range(len(rows)))
    kept = [outcome.record for outcome in outcomes if outcome.kept]
    right = [n for n, (said, why, _, gold) in enumerate(rows) if gold and why and said == "sea"]
    given_ = [n for n, (_, _, text, gold) in enumerate(rows) if gold and text == "because"]
    wanted = {"cot": right, "rationalization": given_, "both": sorted({*right, *given_})}[source]
    assert kept == wanted, "one explanation a record, of the first source that has one"
    for problem in problems:
        made = method.examples(problem, [outcome for outcome in outcomes if outcome.record == problem.number])
        assert [each.tag for each in made["student"]] == ["answer", "explanation"] * kept.count(problem.number)


def test_real_rationales_are_filtered(data_folder: Path) -> None:
    records = load_records(data_folder / "cqa_palm_cot" / "train.jsonl.gz", "test")[:1000]
    method = make(answer_step=True, human_field="human_explanation")
    problems = problems_from(records, method, "question", "answer")
    fields = {"rationale": "llm_rationale", "answer": "llm_answer"}
    outcomes, _ = collect(method, problems, RecordedGenerator(records, "question", fields), progress=False)
    # Of all 9,741 PaLM answers 7,334 rightly; each of the others has a human explanation.
    assert count_reasons(outcomes) == {KEPT: 1000, WRONG: 254}
    assert count_sources(outcomes) == {CHAIN: 746, HUMAN: 254}


# -- the student -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "label"),
    [
        ("reasoning", " Boats float."),
        ("rationale", " The answer is sea. Boats float."),
        ("cot", " Boats float. So the answer is sea."),
    ],
)
def test_both_tasks_have_a_text_in_each_setup(setup: Any, label: str) -> None:
    outcomes = [Outcome(0, 0, WRONG, {"rationale": "x"}, "bank"), Outcome(0, 1, KEPT, {"rationale": "Boats float."})]
    answer, explanation = make(setup=setup).examples(QUESTION, outcomes)["student"]
    assert (answer.prompt, answer.label, answer.tag) == (
        "answer: Where do boats go?\n(A) sea (B) desert (C) bank ###", " sea", "answer",
    )  # fmt: skip
    assert (explanation.prompt, explanation.label, explanation.tag) == (
        "explain: Where do boats go?\n(A) sea (B) desert (C) bank ###", label, "explanation",
    )  # fmt: skip
    one, other = make(setup=setup, student_kind="encoder_decoder").examples(QUESTION, outcomes)["student"]
    assert (one.prompt, one.label, other.label) == (answer.prompt.removesuffix(" ###"), "sea", label.strip())


def test_a_record_without_an_explanation_teaches_its_answer_unless_it_may_not() -> None:
    dropped = [Outcome(0, 0, WRONG, {"rationale": "x"}, "bank")]
    (example,) = make().examples(QUESTION, dropped)["student"]
    assert (example.label, example.tag) == (" sea", "answer")
    assert make(answers_of_all=False).examples(QUESTION, dropped) == {"student": []}
    assert make().examples(Problem(0, "q", None, RECORD), [Outcome(0, 0, NO_GOLD)]) == {"student": []}


def test_weights_are_alpha_and_the_rest() -> None:
    assert make(alpha=0.25).tag_weights == {"answer": 0.25, "explanation": 0.75}
    assert make(demonstrations=SHOWN) == make(demonstrations=SHOWN)
    assert make(demonstrations=SHOWN) != make(demonstrations=[SHOWN[0] | {"answer": "fish"}])
    assert repr(make(demonstrations=SHOWN).shown) != repr(make(demonstrations=[SHOWN[0] | {"answer": "fish"}]).shown)


def test_inference_uses_the_answer_task_alone() -> None:
    problems = [Problem(n, RECORD["question"], "sea", RECORD) for n in range(3)]
    rounds = make(inference_tokens=7).infer(problems)
    current = next(rounds)
    assert (current.role, current.requests[0].sampling.max_tokens) == ("student", 7)
    assert current.requests[0].prompt == "answer: Where do boats go?\n(A) sea (B) desert (C) bank ###"
    predictions = finish(rounds, answered(current.requests, " Sea \nexplain:", " sea bank", ""))
    assert [(p.prediction, p.correct) for p in predictions] == [("Sea", True), ("sea bank", False), (None, False)]
    rounds = MTCoT("number").infer([Problem(0, "q", "42.0")])
    (prediction,) = finish(rounds, answered(next(rounds).requests, " 42, not 43"))
    assert (prediction.prediction, prediction.correct) == ("42", True)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"source": "human"}, "source is cot, rationalization or both"),
        ({"setup": "chain"}, "setup is reasoning, rationale or cot"),
        ({"alpha": 1.0}, "alpha is 1.0.*AnswerOnly"),
        ({"alpha": 0}, "alpha"),
        ({"source": "cot", "human_field": "human"}, "human_field"),
        ({"answer_prefix": "explain: "}, "prefix"),
        ({"demonstrations": SHOWN, "demonstration_count": 2}, "MTCoT: demonstrations: 2 are asked for"),
        ({"demonstrations": [{"question": "q", "answer": "a"}]}, "no field 'rationale'"),
        ({"demonstrations": [SHOWN[0] | {"choices": "dog, fish"}]}, "number 1 holds no list in 'choices'"),
        ({"demonstration_choice": "random"}, "first or drawn"),
        ({"kind": "words"}, "text"),
        ({"student_kind": "encoder"}, "student_kind"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make(**options)


@pytest.mark.parametrize(
    ("options", "record", "named"),
    [
        ({"choices_field": "options"}, RECORD, "no field 'options'"),
        ({}, RECORD | {"choices": "sea"}, "record 0: choices_field 'choices' holds a str"),
        ({"source": "rationalization", "human_field": "said"}, RECORD, "no field 'said'"),
        ({"rationale_prompt": "mt_cot/chian.jinja"}, RECORD, "no template.*chain"),
    ],
)
def test_wrong_records_are_named(options: dict[str, Any], record: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        next(make(**options).collect([Problem(0, "q", "sea", record)]))


def test_records_without_a_rationalization_say_which_field_is_missing() -> None:
    records = [RECORD | {"why": "x", "said": "bank"}]
    method = make(answer_step=True)
    teacher = RecordedGenerator(records, "question", {"rationale": "why", "answer": "said"})
    with pytest.raises(ConfigurationError, match=r"rationalization: FIELD"):
        collect(method, problems_from(records, method, "question", "answer"), teacher, progress=False)


# -- from records to predictions ---------------------------------------------------------------------------------------


def tiny(**options: Any) -> Any:
    config = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config | ends | options)


def test_from_records_to_predictions(trainer: Any, tmp_path: Path, sums: Callable[[int], list]) -> None:
    records = [record | {"human": "I count."} for record in sums(30)]
    data = BlackBoxData(
        MTCoT("number", answer_step=True, human_field="human", inference_tokens=4),
        records,
        recorded_fields={"rationale": "why", "answer": "said"},
        store=str(tmp_path / "text.sqlite"),
        vocab_size=300,
        test_split=6,
        val_split=6,
        batch_size=8,
        progress=False,
    )
    module = BlackBoxDistillation(tiny())
    fitted = trainer(max_epochs=1)
    fitted.fit(module, datamodule=data)
    assert {"train/loss_answer", "train/loss_explanation", "val/acc"} <= set(fitted.callback_metrics)
    rows = [json.loads(line) for line in data.report.read_text().splitlines()]
    assert {row["texts"]["source"] for row in rows if row["kept"]} == {CHAIN, HUMAN}
    assert len({(row["record"], row["sample"]) for row in rows}) == len(rows)
    fitted.test(module, datamodule=data)
    (file,) = tmp_path.rglob("test_predictions*.jsonl")
    predictions = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["record"] for row in predictions] == [problem.number for problem in data.problems["test"]]


def test_nothing_kept_is_no_reason_to_train_on_answers_alone(tmp_path: Path, sums: Callable[[int], list]) -> None:
    records = [record | {"said": 99} for record in sums(10)]
    data = BlackBoxData(
        MTCoT("number", source="cot", answer_step=True),
        records,
        recorded_fields={"rationale": "why", "answer": "said"},
        store=str(tmp_path / "text.sqlite"),
        vocab_size=300,
        progress=False,
    )
    with pytest.raises(ConfigurationError, match=r"nothing to train on: 0 of 9 .*wrong"):
        data.prepare_data()
