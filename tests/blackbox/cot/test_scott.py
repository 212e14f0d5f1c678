"""SCOTT: what the teacher is asked, what the student learns, and how its faithfulness is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, run_rounds
from kdlightning.blackbox.cot.faithfulness import FaithfulPrediction, faithfulness_metrics, perturbed
from kdlightning.blackbox.cot.scott import EMPTY, NO_GOLD, NO_TEXT, NO_WRONG, SCOTT
from kdlightning.blackbox.cot.wrong_answers import wrong_answer
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Capability, Completion, Contrast, Request, TextGenerator
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.store import CompletionStore

CHOICES = ["park", "math problem", "gravity"]
QUESTION = Problem(0, "What is this?", "math problem", {"choices": CHOICES, "why": "It asks\nfor  a sum."})
WITH_CHOICES = {"choices_field": "choices"}


class Local(TextGenerator):
    """A scripted teacher with logits, and student: notes its requests, and answers what `say` makes of them."""

    capabilities: frozenset[Capability] = frozenset({"text", "logits", "answer_start"})
    batch_size = 4

    def __init__(self, say: Any = lambda request: "Because.") -> None:
        self.say = say
        self.asked: list[Request] = []

    @property
    def identity(self) -> str:
        return "local"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked += requests
        said = [self.say(request) for request in requests]
        return [
            Answer.refused(request, "it broke") if text is None else Answer(request, {0: Completion(text)})
            for request, text in zip(requests, said, strict=True)
        ]


def first_round(method: SCOTT, problems: list[Problem]) -> list[Request]:
    return list(next(method.collect(problems)).requests)


# -- the teacher -------------------------------------------------------------------------------------------------------


def test_the_teacher_explains_the_right_and_a_wrong_answer() -> None:
    factual, counterfactual = first_round(SCOTT(**WITH_CHOICES), [QUESTION])
    asked = "Q: What is this?\nAnswer Choices:\n(a) park\n(b) math problem\n(c) gravity\nA: The answer is"
    assert factual.prompt == f"{asked} math problem."
    assert factual.contrast is not None
    assert factual.contrast.prompt in (f"{asked} park.", f"{asked} gravity.")
    assert factual.contrast.weight == 1.0
    assert counterfactual.prompt in (f"{asked} park.", f"{asked} gravity.")
    assert counterfactual.contrast == Contrast(f"{asked} math problem.")
    for request in (factual, counterfactual):
        assert request.sampling.greedy
        assert (request.sampling.max_tokens, request.stop, request.samples) == (128, ("\n",), 1)


def test_a_rationale_may_be_told_from_that_of_no_answer() -> None:
    factual, counterfactual = first_round(SCOTT(perturbation="empty", plausibility=0.5, **WITH_CHOICES), [QUESTION])
    for request in (factual, counterfactual):
        assert request.contrast is not None
        assert request.contrast.prompt.endswith("\nA: The answer is .")
        assert request.contrast.weight == 0.5


def test_demonstrations_stand_before_the_question() -> None:
    shown = [
        {"question": "Why? ", "answer": "sun", "rationale": "It shines.", "choices": ["sun", "moon"]},
        {"question": "Who?", "answer": "Ann", "rationale": "She was there."},
    ]
    (request,) = first_round(SCOTT(demonstrations=shown, counterfactual_weight=0, **WITH_CHOICES), [QUESTION])
    assert request.prompt == (
        "Q: Why?\nAnswer Choices:\n(a) sun\n(b) moon\nA: The answer is sun. It shines.\n\n"
        "Q: Who?\nA: The answer is Ann. She was there.\n\n"
        "Q: What is this?\nAnswer Choices:\n(a) park\n(b) math problem\n(c) gravity\nA: The answer is math problem."
    )
    assert request.contrast is not None
    assert request.contrast.prompt.startswith("Q: Why?")


def test_without_plausibility_decoding_is_plain() -> None:
    assert [request.contrast for request in first_round(SCOTT(plausibility=0, **WITH_CHOICES), [QUESTION])] == [
        None
    ] * 2


@pytest.mark.parametrize(
    ("options", "gold", "record", "wrong"),
    [
        ({"kind": "yes_no"}, "yes", {}, {"no"}),
        ({"kind": "choice"}, "(b)", {}, {"A", "C", "D", "E"}),
        ({"kind": "choice", **WITH_CHOICES}, "B", {"choices": CHOICES}, {"A", "C"}),
        ({"kind": "number"}, "5.0", {}, {"7"}),
        (WITH_CHOICES, "Park", {"choices": CHOICES}, {"math problem", "gravity"}),
    ],
)
def test_wrong_answers_of_every_kind(options: Any, gold: str, record: Any, wrong: set[str]) -> None:
    method = SCOTT(**options)
    problems = [Problem(number, f"question {number}", gold, record) for number in range(40)]
    problems += [Problem(40, "other", "7", record)] if options.get("kind") == "number" else []
    outcomes, _ = collect(method, problems, Local(), progress=False)
    assert {outcome.prediction for outcome in outcomes[:80:2]} == {method.gold(problems[0])}
    found = {outcome.prediction for outcome in outcomes[1:80:2]}
    assert found == wrong


def test_every_reason_occurs_and_they_add_up() -> None:
    problems = [Problem(n, f"q{n}", "x" if n else None, {"choices": ["x", "y"] if n < 4 else ["x"]}) for n in range(5)]
    texts = {"q1": " Be\tcause. ", "q2": "  ", "q3": None}
    teacher = Local(lambda request: next(text for name, text in texts.items() if name in request.prompt))
    outcomes, (result,) = collect(SCOTT(**WITH_CHOICES), problems, teacher, progress=False)
    assert [(each.record, each.sample) for each in outcomes] == [(n, s) for n in range(5) for s in (0, 1)]
    reasons = [each.reason for each in outcomes]
    assert reasons == [NO_GOLD] * 2 + [KEPT] * 2 + [EMPTY] * 2 + [NO_TEXT] * 2 + [NO_WRONG] * 2
    assert outcomes[2] == Outcome(1, 0, KEPT, {"rationale": "Be cause."}, "x")
    assert outcomes[3].prediction == "y"
    assert outcomes[6].detail == "it broke"
    assert sum(count_reasons(outcomes).values()) == 10
    assert (result.asked, len(result.failures)) == (6, 2)


def test_an_empty_perturbation_needs_no_wrong_answer_for_the_right_ones_rationale() -> None:
    problem = Problem(0, "q", "x", {"choices": ["x"]})
    outcomes, _ = collect(SCOTT(perturbation="empty", **WITH_CHOICES), [problem], Local(), progress=False)
    assert [each.reason for each in outcomes] == [KEPT, NO_WRONG]


def test_a_teacher_without_logits_is_refused() -> None:
    recorded = RecordedGenerator([{"prompt": "a", "answer": "b"}])
    with pytest.raises(ConfigurationError, match="SCOTT needs logits, and RecordedGenerator gives only text"):
        collect(SCOTT(**WITH_CHOICES), [QUESTION], recorded, progress=False)
    with pytest.raises(ConfigurationError, match="'Rationales' needs logits"):
        run_rounds(SCOTT(**WITH_CHOICES).collect([QUESTION]), {"teacher": recorded}, progress=False)


def test_a_store_with_half_of_the_answers_asks_for_the_rest_alone() -> None:
    problems = [Problem(n, f"q{n}", "x", {"choices": ["x", "y", "z"]}) for n in range(6)]
    method, store, whole = (
        SCOTT(**WITH_CHOICES),
        CompletionStore(":memory:"),
        Local(lambda request: request.prompt[3:5]),
    )
    expected, _ = collect(method, problems, whole, progress=False)
    collect(method, problems[:3], Local(whole.say), store, progress=False)
    rest = Local(whole.say)
    found, (result,) = collect(method, problems, rest, store, progress=False)
    assert found == expected
    assert (result.asked, result.reused, len(rest.asked)) == (6, 6, 6)
    assert {request.prompt[3:5] for request in rest.asked} == {"q3", "q4", "q5"}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ab ", max_size=3), max_size=6), st.text("ab ", max_size=3), st.integers(0, 5), st.randoms())
def test_wrong_answers_are_wrong_and_know_no_order(candidates: list[str], gold: str, seed: int, draw: Any) -> None:
    found = wrong_answer(candidates, gold, "p", "q", seed)
    others = [each for each in candidates if each.split() != gold.split()]
    assert found in others if others else found is None
    shuffled = list(candidates)
    draw.shuffle(shuffled)
    assert wrong_answer(shuffled, gold, "p", "q", seed) == found


# -- the student -------------------------------------------------------------------------------------------------------


def test_examples_have_the_papers_texts_and_tags() -> None:
    outcomes = [
        Outcome(0, 0, KEPT, {"rationale": "It asks for a sum."}, "math problem"),
        Outcome(0, 1, KEPT, {"rationale": "It falls."}, "gravity"),
    ]
    method = SCOTT(**WITH_CHOICES)
    factual, counterfactual = method.examples(QUESTION, outcomes)["student"]
    assert factual.prompt == "[factual] What is this?\n(A) park (B) math problem (C) gravity ###"
    assert factual.label == " [factual] It asks for a sum. So the answer is math problem"
    assert (factual.given, factual.tag) == ("", "factual")
    assert counterfactual.prompt == "[counterfactual] What is this?\n(A) park (B) math problem (C) gravity ###"
    assert counterfactual.given == " [counterfactual] It falls. So the answer is"
    assert (counterfactual.label, counterfactual.tag) == (" gravity", "counterfactual")
    assert method.tag_weights == {"factual": 0.5, "counterfactual": 0.5}
    assert method.prompt(QUESTION) == factual.prompt
    (alone,) = method.examples(QUESTION, [outcomes[0], Outcome(0, 1, EMPTY)])["student"]
    assert alone == factual


def test_encoder_decoders_get_the_same_without_separator_and_first_space() -> None:
    outcomes = [Outcome(0, 0, KEPT, {"rationale": "So."}, "park"), Outcome(0, 1, KEPT, {"rationale": "So."}, "gravity")]
    method = SCOTT(student_kind="encoder_decoder", counterfactual_weight=0.25)
    factual, counterfactual = method.examples(QUESTION, outcomes)["student"]
    assert (factual.prompt, factual.label) == ("[factual] What is this?", "[factual] So. So the answer is park")
    assert counterfactual.given == "[counterfactual] So. So the answer is"
    assert counterfactual.label == " gravity"
    assert method.tag_weights == {"factual": 0.75, "counterfactual": 0.25}
    assert next(method.infer([QUESTION])).requests[0].answer_start == "[factual]"


def test_inference_starts_as_told_and_then_feeds_rationales() -> None:
    method = SCOTT(oracle_field="why", inference_tokens=99, answer_tokens=7, **WITH_CHOICES)
    other = Problem(1, "And this?", "park", {"choices": CHOICES, "why": None})

    def say(request: Request) -> str:
        if request.answer_start == " [factual]":
            told = "this?" in str(request.prompt) and "And" not in str(request.prompt)
            return " It adds up so far. So the answer is math problem" if told else " I do not know"
        return " Math  problem" if "It asks for a sum." in request.answer_start else " park"

    student = Local(say)
    predictions, results = run_rounds(method.infer([QUESTION, other]), {"student": student}, progress=False)
    assert [result.asked for result in results] == [2, 4]
    assert {request.sampling.max_tokens for request in student.asked[:2]} == {99}
    assert {request.sampling.max_tokens for request in student.asked[2:]} == {7}
    assert {request.prompt for request in student.asked} == {method.prompt(QUESTION), method.prompt(other)}
    fed = [request.answer_start for request in student.asked[2:]]
    assert " [factual] It asks for a sum. So the answer is" in fed
    assert all(text.startswith(" [factual] ") and text.endswith(" So the answer is") for text in fed)
    one, two = predictions
    assert (one.prediction, one.gold, one.correct) == ("math problem", "math problem", True)
    assert one.fed == {"perturbed": False, "oracle": True, "perturbed_oracle": False}
    assert (two.prediction, two.correct, two.fed) == (None, False, {"perturbed": True})
    assert method.metrics(predictions) == {
        "acc": 0.5,
        "perturbed_acc": 0.5,
        "oracle_acc": 1.0,
        "perturbed_oracle_acc": 0.0,
        "drop": 0.0,
        "oracle_drop": 1.0,
    }


def test_oracle_rationales_lead_to_the_right_answer() -> None:
    method = SCOTT(oracle_field="why", oracle_answer_field="said", **WITH_CHOICES)
    told = ["math  problem", "gravity", None]
    records = [{"choices": CHOICES, "why": "So it is.", "said": said} for said in told]
    problems = [Problem(n, f"q{n}", "Math problem", record) for n, record in enumerate(records)]
    predictions, _ = run_rounds(method.infer(problems), {"student": Local()}, progress=False)
    assert [set(each.fed) for each in predictions if isinstance(each, FaithfulPrediction)] == [
        {"perturbed", "oracle", "perturbed_oracle"},
        {"perturbed"},
        {"perturbed"},
    ]


def test_faithfulness_can_be_left_out() -> None:
    method = SCOTT(faithfulness=False)
    (prediction,), results = run_rounds(
        method.infer([QUESTION]), {"student": Local(lambda request: " So the answer is math problem")}, progress=False
    )
    assert len(results) == 1
    assert method.metrics([prediction]) == {"acc": 1.0}
    assert method.metrics([]) == {}


def test_metrics_are_over_the_records_that_have_them() -> None:
    made = [FaithfulPrediction(n, "", "", None, None, n < 2, {"perturbed": n < 1}) for n in range(4)]
    values = faithfulness_metrics(made)
    assert values == {"acc": 0.5, "perturbed_acc": 0.25, "drop": 0.25}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abcXYZ.", min_size=1, max_size=4), max_size=20), st.floats(0, 1), st.integers(0, 9))
def test_a_share_of_the_words_is_replaced(words: list[str], share: float, seed: int) -> None:
    spoilt = perturbed(" ".join(words), share, "q", seed).split()
    assert len(spoilt) == len(words)
    changed = [new for new, old in zip(spoilt, words, strict=True) if new != old]
    assert len(changed) == int(len(words) * share)
    assert perturbed(" ".join(words), share, "q", seed).split() == spoilt


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "words"}, "kind"),
        ({"plausibility": -1.0}, "plausibility"),
        ({"perturbation": "none"}, "perturbation"),
        ({"counterfactual_weight": 1.0}, "counterfactual_weight"),
        ({"perturbed_share": 1.5}, "perturbed_share"),
        ({"rationale_tokens": 0}, "max_tokens"),
        ({"student_kind": "encoder"}, "student_kind"),
        ({"demonstrations": [{"question": "q", "answer": "a"}]}, "rationale"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        SCOTT(**options)


def test_a_field_of_choices_holds_a_list() -> None:
    with pytest.raises(ConfigurationError, match="choices_field 'why' holds a str"):
        first_round(SCOTT(choices_field="why"), [QUESTION])
    with pytest.raises(ConfigurationError, match="no field 'choice'"):
        first_round(SCOTT(choices_field="choice"), [QUESTION])


def test_templates_can_be_replaced(tmp_path: Any) -> None:
    teacher, student = tmp_path / "teacher.jinja", tmp_path / "student.jinja"
    teacher.write_text("{{ record.why | trim }} {{ answer }}?")
    student.write_text("{{ tag }}: {{ question }}")
    method = SCOTT(rationale_prompt=str(teacher), student_prompt=str(student), **WITH_CHOICES)
    assert first_round(method, [QUESTION])[0].prompt == "It asks\nfor  a sum. math problem?"
    assert method.prompt(QUESTION) == "factual: What is this? ###"
