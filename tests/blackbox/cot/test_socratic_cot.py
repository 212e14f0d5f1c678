"""Subquestions and solutions: chains, their filter, two students and their conversation."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Prediction, Problem, Rounds, collect, problems_from, run_rounds
from kdlightning.blackbox.cot.socratic_chain import Chain, Step, chain_of_record, read_chain
from kdlightning.blackbox.cot.socratic_cot import NO_ANSWER, NO_CHAIN, NO_TEXT, WRONG, SocraticCoT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.question_answering import NO_GOLD
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.store import CompletionStore
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

EGGS = (
    "How many eggs are left? ** There are 16 - 3 = <<16-3=13>>13 eggs left over 2 days.\n"
    "What are they worth? ** They are worth 13 * 2 = $<<13*2=26>>26.\n"
    "#### 26"
)
PROBLEM = Problem(0, "Of 16 eggs 3 are eaten; an egg is $2.", "26")
FACTS = {
    "question": "Could a fish outlive a cat?",
    "answer": True,
    "decomposition": ["How old do fish get?", "How old do cats get?", "Is #1 above #2?"],
    "facts": ["Some fish live 60 years.", "Cats live 15 years."],
}


def answered(method: SocraticCoT, problems: Sequence[Problem], texts: Sequence[str | None]) -> list[Outcome]:
    records = [{"q": p.question, "a": text} for p, text in zip(problems, texts, strict=True)]
    teacher = RecordedGenerator(records, "q", {"chain": "a"})
    outcomes, _ = collect(method, problems, teacher, progress=False)
    return outcomes


def talk(rounds: Rounds[list[Prediction]], replies: Sequence[Sequence[str]]) -> tuple[list[Any], list[Prediction]]:
    """Answers rounds with replies; what was asked of whom, and what came of it."""
    asked, left = [], list(replies)
    try:
        current = next(rounds)
        while True:
            asked.append((current.role, [request.text for request in current.requests]))
            texts = left.pop(0)
            answers = [Answer(r, {0: Completion(t)}) for r, t in zip(current.requests, texts, strict=True)]
            current = rounds.send(answers)
    except StopIteration as end:
        assert not left
        return asked, end.value


# -- chains ------------------------------------------------------------------------------------------------------------


def test_a_chain_is_read_line_by_line() -> None:
    chain = read_chain(EGGS, "number")
    assert chain == Chain(
        (
            Step("How many eggs are left?", "There are 16 - 3 = 13 eggs left over 2 days.", "13"),
            Step("What are they worth?", "They are worth 13 * 2 = $26.", "26"),
        ),
        "26",
    )
    kept = read_chain(EGGS, "number", annotations=True)
    assert kept is not None
    assert [step.answer for step in kept.steps] == ["13", "26"]
    assert kept.text == EGGS
    assert kept.steps[0].label == "There are 16 - 3 = <<16-3=13>>13 eggs left over 2 days. #### 13"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#### 3",
        "How many? ** 3",
        "How many? ** 3\nIt is 3.\n#### 3",
        "How many? ** \n#### 3",
        "** 3\n#### 3",
        "How many? ** <<1+2=3>>\n#### 3",
        "#### 3\nHow many? ** 3",
    ],
)
def test_what_is_no_chain_is_none(text: str) -> None:
    assert read_chain(text, "number") is None


words = st.text(st.characters(codec="utf-8", exclude_characters="*#<>", exclude_categories=("C", "Z")), min_size=1)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5), st.integers(-999, 999))
def test_a_chain_survives_writing_and_reading(pairs: list[tuple[str, str]], answer: int) -> None:
    text = "\n".join(f"{question} ** {said}" for question, said in pairs) + f"\n#### {answer}"
    chain = read_chain(text, "number")
    assert chain is not None
    assert [(step.question, step.solution) for step in chain.steps] == pairs
    assert chain.steps[-1].answer == str(answer)
    assert read_chain(chain.text, "number") == chain


def test_two_lists_of_a_record_are_a_chain_whose_last_question_is_the_answers() -> None:
    fields = {"subquestions": "decomposition", "solutions": "facts"}
    chain = chain_of_record(FACTS, fields, "yes", "yes_no")
    assert chain is not None
    assert [step.label for step in chain.steps] == ["Some fish live 60 years.", "Cats live 15 years.", "yes"]
    assert chain_of_record({**FACTS, "facts": ["one"]}, fields, "yes", "yes_no") is None
    assert chain_of_record({**FACTS, "facts": "one, two"}, fields, "yes", "yes_no") is None
    assert chain_of_record(FACTS, fields, None, "yes_no") is None
    with pytest.raises(ConfigurationError, match="no field 'fact'; did you mean facts"):
        chain_of_record(FACTS, {**fields, "solutions": "fact"}, "yes", "yes_no")


# -- the teacher -------------------------------------------------------------------------------------------------------


def test_the_teacher_is_asked_once_for_a_chain() -> None:
    (current,) = [next(SocraticCoT(samples=2, seed=5).collect([PROBLEM, Problem(1, "Who?", None)]))]
    (request,) = current.requests
    assert request.text.startswith("Break the problem down into subquestions, and answer them one after the other.\n")
    assert request.text.endswith(f"#### 7\n\nProblem: {PROBLEM.question}")
    assert (current.role, request.samples, request.sampling.temperature) == ("teacher", 2, 0.7)
    assert (request.sampling.max_tokens, request.sampling.seed) == (512, 5)
    assert SocraticCoT().chain_sampling.greedy


def test_the_prompt_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("Split: {{ question }} ({{ record.unit }})")
    method = SocraticCoT(chain_prompt=str(tmp_path / "mine.jinja"))
    (request,) = next(method.collect([Problem(0, "How far?", "3", {"unit": "km"})])).requests
    assert request.text == "Split: How far? (km)"


def test_every_sample_has_one_outcome_and_its_reason() -> None:
    texts = [EGGS, EGGS.replace("#### 26", "#### 27"), "It is 26.", EGGS.replace("#### 26", "#### many"), None, ""]
    problems = [Problem(n, f"{PROBLEM.question} {n}", "26.0") for n in range(6)] + [Problem(6, "?", None)]
    outcomes = answered(SocraticCoT(), problems, [*texts, EGGS])
    reasons = [KEPT, WRONG, NO_CHAIN, NO_ANSWER, NO_TEXT, NO_CHAIN, NO_GOLD]
    assert [(o.record, o.reason) for o in outcomes] == list(enumerate(reasons))
    assert (outcomes[0].prediction, outcomes[1].prediction) == ("26", "27")
    assert outcomes[0].texts == {"chain": EGGS}


def test_half_a_store_is_asked_only_for_the_rest() -> None:
    problems = [Problem(n, f"Problem {n}", "26") for n in range(6)]
    teacher = RecordedGenerator([{"q": p.question, "a": EGGS} for p in problems], "q", {"chain": "a"})
    store = CompletionStore(":memory:")
    collect(SocraticCoT(), problems[:3], teacher, store, progress=False)
    outcomes, (result,) = collect(SocraticCoT(), problems, teacher, store, progress=False)
    assert (result.asked, result.reused) == (3, 3)
    assert all(outcome.kept for outcome in outcomes)


def test_chains_of_the_records_are_filtered_without_a_teacher() -> None:
    records = [{"question": "a", "answer": f"So.\n#### {n}", "chain": EGGS} for n in (26, 27)]
    records += [{"question": "b", "answer": "26", "chain": None}, {"question": "c", "answer": "", "chain": EGGS}]
    method = SocraticCoT(chain_fields={"chain": "chain"})
    problems = problems_from(records, method, "question", "answer")
    outcomes, results = run_rounds(method.collect(problems), {}, progress=False)
    assert [outcome.reason for outcome in outcomes] == [KEPT, WRONG, NO_CHAIN, NO_GOLD]
    assert not results
    assert outcomes[0].texts["chain"] == read_chain(EGGS, "number").text


# -- the students ------------------------------------------------------------------------------------------------------


def texts(method: SocraticCoT, problem: Problem = PROBLEM, chain: str = EGGS) -> dict[str, list[tuple[str, str]]]:
    found = method.examples(problem, [Outcome(0, 0, KEPT, {"chain": chain}), Outcome(0, 1, WRONG, {"chain": chain})])
    return {name: [(example.prompt, example.label) for example in examples] for name, examples in found.items()}


SOLVER = [
    (f"{PROBLEM.question} ### How many eggs are left? **", " There are 16 - 3 = 13 eggs left over 2 days. #### 13"),
    (
        f"{PROBLEM.question} ### How many eggs are left? ** There are 16 - 3 = 13 eggs left over 2 days. #### 13 ### "
        "What are they worth? **",
        " They are worth 13 * 2 = $26. #### 26",
    ),
]


def test_unified_texts() -> None:
    asking = [(f"{PROBLEM.question} ###", " How many eggs are left? ** What are they worth?")]
    assert texts(SocraticCoT()) == {"decomposer": asking, "solver": SOLVER}


def test_iterative_texts() -> None:
    found = texts(SocraticCoT("iterative"))
    assert found["solver"] == SOLVER
    first, second, end = found["decomposer"]
    assert first == (f"{PROBLEM.question} ###", " How many eggs are left?")
    assert second == (SOLVER[1][0].removesuffix(" What are they worth? **"), " What are they worth?")
    assert end == (f"{second[0]} What are they worth? ** They are worth 13 * 2 = $26. #### 26 ###", " ####")


def test_encoder_decoders_get_labels_without_their_space_and_annotations_are_an_option() -> None:
    found = texts(SocraticCoT(student_kind="encoder_decoder", annotations=True))
    assert found["decomposer"][0][1] == "How many eggs are left? ** What are they worth?"
    assert found["solver"][0][1] == "There are 16 - 3 = <<16-3=13>>13 eggs left over 2 days. #### 13"


def test_the_decomposer_asks_all_and_the_solver_answers_in_turn() -> None:
    problems = [PROBLEM, Problem(1, "And 5?", "5"), Problem(2, "Nothing?", "1")]
    replies = [[" q1 ** q2\n", " q3", "#### done"], [" s1 = 3 #### 3", "five"], [" So 26"]]
    asked, predictions = talk(SocraticCoT().infer(problems), replies)
    assert asked == [
        ("decomposer", [f"{PROBLEM.question} ###", "And 5? ###", "Nothing? ###"]),
        ("solver", [f"{PROBLEM.question} ### q1 **", "And 5? ### q3 **"]),
        ("solver", [f"{PROBLEM.question} ### q1 ** s1 = 3 #### 3 ### q2 **"]),
    ]
    assert [(p.record, p.prediction, p.correct) for p in predictions] == [
        (0, "26", True),
        (1, None, False),
        (2, None, False),
    ]
    assert predictions[0].text == "q1 ** s1 = 3 #### 3\nq2 ** So 26"
    assert predictions[2].text == ""


def test_the_iterative_decomposer_asks_on_until_it_is_done_or_stopped() -> None:
    problems = [PROBLEM, Problem(1, "And 5?", "5")]
    replies = [["q1", "r1"], ["3", "4"], ["q2", " ####"], ["26"], ["q3"], ["27"]]
    asked, predictions = talk(SocraticCoT("iterative", most_steps=3).infer(problems), replies)
    assert [role for role, _ in asked] == ["decomposer", "solver"] * 3
    assert asked[2][1] == [f"{PROBLEM.question} ### q1 ** 3 ###", "And 5? ### r1 ** 4 ###"]
    assert asked[4][1] == [f"{PROBLEM.question} ### q1 ** 3 ### q2 ** 26 ###"]
    assert [(p.prediction, p.correct) for p in predictions] == [("27", False), ("4", False)]


def test_unified_questions_stop_at_most_steps() -> None:
    asked, _ = talk(SocraticCoT(most_steps=2).infer([PROBLEM]), [["a ** b ** c"], ["1"], ["2"]])
    assert len(asked) == 3


def test_a_student_alone_is_judged_on_right_inputs() -> None:
    method, outcome = SocraticCoT(), Outcome(0, 0, KEPT, {"chain": EGGS})
    problems = [PROBLEM, Problem(1, "Unknown?", "1")]
    asked, (solved,) = talk(method.infer_alone("solver", problems, [outcome]), [["13 #### 13"], ["#### 26"]])
    assert [role for role, _ in asked] == ["solver", "solver"]
    assert asked[1][1] == [f"{PROBLEM.question} ### How many eggs are left? ** 13 #### 13 ### What are they worth? **"]
    assert (solved.prediction, solved.correct) == ("26", True)
    reply = "How many eggs are left?  ** what are they worth?"
    asked, (decomposed,) = talk(method.infer_alone("decomposer", problems, [outcome]), [[reply]])
    assert decomposed.correct
    iterative = SocraticCoT("iterative").infer_alone("decomposer", problems, [outcome])
    asked, (decomposed,) = talk(iterative, [["How many eggs are left?", "What are they?", " ####"]])
    assert [prompt for prompt, _ in texts(SocraticCoT("iterative"))["decomposer"]] == asked[0][1]
    assert not decomposed.correct
    assert decomposed.text == "How many eggs are left?\nWhat are they?\n####"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"decomposition": "both"}, "unified or iterative, not 'both'"),
        ({"samples": 0}, "samples is 0"),
        ({"most_steps": 0}, "most_steps is 0"),
        ({"kind": "numbers"}, "did you mean number"),
        ({"student_kind": "decoder"}, "student_kind"),
        ({"chain_fields": {"chian": "a"}}, "did you mean chain"),
        ({"chain_fields": {"subquestions": "a"}}, "or those of subquestions and solutions, not of subquestions"),
        ({"chain_fields": {}}, "not of nothing"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        SocraticCoT(**options)
    assert "\n" not in str(caught.value)


# -- real chains -------------------------------------------------------------------------------------------------------


def test_gsm8ks_own_chains_are_read_whole(data_folder: Path) -> None:
    with gzip.open(data_folder / "gsm8k" / "test_part_a.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    method = SocraticCoT(chain_fields={"chain": "answer_socratic"})
    problems = problems_from(records, method, "question", "answer")
    outcomes, _ = run_rounds(method.collect(problems), {}, progress=False)
    assert len(outcomes) == 400
    assert all(outcome.kept for outcome in outcomes)
    found = [method.examples(p, [o]) for p, o in zip(problems, outcomes, strict=True)]
    assert sum(len(examples["solver"]) for examples in found) == 1405
    assert not any("<<" in example.label for examples in found for example in examples["solver"])


def test_strategyqas_decompositions_fit_where_one_fact_is_missing(data_folder: Path) -> None:
    with gzip.open(data_folder / "strategyqa" / "train.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    method = SocraticCoT(chain_fields={"subquestions": "decomposition", "solutions": "facts"}, kind="yes_no")
    problems = problems_from(records, method, "question", "answer")
    outcomes, _ = run_rounds(method.collect(problems), {}, progress=False)
    assert Counter(outcome.reason for outcome in outcomes) == {KEPT: 787, NO_CHAIN: 1274}


def test_both_students_are_trained_and_chained(trainer: Any, tmp_path: Path) -> None:
    records = [
        {
            "question": f"Ann has {n} pens, Bob has {n + 2}.",
            "answer": str(2 * n + 2),
            "chain": f"How many has Bob? ** He has {n + 2}.\nHow many in all? ** {n} + {n + 2}.\n#### {2 * n + 2}",
        }
        for n in range(14)
    ]

    def data(student: str) -> BlackBoxData:
        return BlackBoxData(
            SocraticCoT(inference_tokens=12, question_tokens=24),
            records,
            student=student,
            recorded_fields={"chain": "chain"},
            store=str(tmp_path / "text.sqlite"),
            vocab_size=300,
            test_split=3,
            val_split=2,
            progress=False,
        )

    def student() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256}
        return transformers_model(architecture="AutoModelForCausalLM", model_type="gpt2", config=sizes)

    decomposer = BlackBoxDistillation(student())
    run = trainer(max_epochs=2)
    run.fit(decomposer, datamodule=data("decomposer"))
    assert "val/decomposer_acc" in run.callback_metrics
    solver = BlackBoxDistillation(student(), partners={"decomposer": decomposer.student})
    run = trainer(max_epochs=2)
    run.fit(solver, datamodule=data("solver"))
    assert "val/acc" in run.callback_metrics
    (tested,) = run.test(solver, datamodule=data("solver"), verbose=False)
    assert set(tested) == {"test/acc"}
    rows = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert [row["gold"] for row in rows] == [row["answer"] for row in (records[r["record"]] for r in rows)]


def test_requests_of_students_are_greedy() -> None:
    rounds = SocraticCoT(question_tokens=5, inference_tokens=7).infer([PROBLEM])
    request: Request = next(rounds).requests[0]
    assert (request.sampling.max_tokens, request.sampling.greedy) == (5, True)
    current = rounds.send([Answer(request, {0: Completion("q")})])
    assert current.requests[0].sampling.max_tokens == 7
