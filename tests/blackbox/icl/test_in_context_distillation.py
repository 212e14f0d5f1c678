"""In-context learning distillation: contexts, filter, examples, votes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from, run_rounds
from kdlightning.blackbox.icl.in_context_distillation import (
    EMPTY,
    LONG,
    NO_GOLD,
    NO_OPTION,
    NO_TEXT,
    ONE_ANSWER,
    InContextDistillation,
)
from kdlightning.blackbox.icl.tasks import TaskProblem
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Capability, Completion, Request, TextGenerator
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.store import CompletionStore
from kdlightning.schedules import LinearSchedule

POOL = [Problem(n, f"Is {n} even?", "no" if n % 2 else "yes") for n in range(6)]
QUERY = TaskProblem(3, " Is 3 even? ", "no", task="even", family="parity", answers=("no", "yes"), pool=tuple(POOL))
WRITTEN = TaskProblem(
    9, "After 9 comes", "10", task="after", family="after", answers=tuple("abcdefghijklmnopqrstuvwxyz")
)


def finish(rounds: Any, answers: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(answers)
    return end.value.value


def scored(request: Request, *values: float) -> Answer:
    return Answer(request, {0: Completion(json.dumps(values))})


def wrote(request: Request, text: str) -> Answer:
    return Answer(request, {0: Completion(text)})


def demonstrations(context: str) -> list[str]:
    return context.split("\n\n\n")[:-1]


def test_a_context_is_demonstrations_and_the_query() -> None:
    method = InContextDistillation(demonstrations=2)
    first, second, query = method.context(QUERY).split("\n\n\n")
    known = {f"{each.question}\n{each.gold}" for each in POOL if each.number != 3}
    assert first != second
    assert {first, second} <= known
    assert query == "Is 3 even?\n"
    assert method.prompt(QUERY) == method.context(QUERY) == InContextDistillation(demonstrations=2).context(QUERY)
    assert InContextDistillation(demonstrations=0).context(QUERY) == "Is 3 even?\n"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(0, 1 << 48), st.integers(0, 3), st.integers(0, 8))
def test_the_query_is_never_shown_and_draws_repeat(number: int, draw: int, vote: int, k: int) -> None:
    query = replace(QUERY, number=number, draw=draw)
    method = InContextDistillation(demonstrations=k)
    shown = demonstrations(method.context(query, vote))
    assert len(shown) == len(set(shown)) == min(k, 5)
    assert not any(each.startswith("Is 3 even?") for each in shown)
    assert method.context(query, vote) == method.context(query, vote)


def test_other_draws_votes_records_and_seeds_show_others() -> None:
    method = InContextDistillation(demonstrations=3)
    contexts = [
        method.context(QUERY),
        method.context(QUERY, vote=1),
        method.context(replace(QUERY, draw=1)),
        method.context(replace(QUERY, number=77)),
        InContextDistillation(demonstrations=3, seed=1).context(QUERY),
    ]
    assert len(set(contexts)) == 5


def test_a_context_has_room_for_so_much() -> None:
    method = InContextDistillation(demonstrations=5, context_characters=50)
    shown = demonstrations(method.context(QUERY))
    assert 1 <= len(shown) < 5
    assert shown == demonstrations(InContextDistillation(demonstrations=5).context(QUERY))[: len(shown)]
    assert len(method.context(QUERY)) <= 51


def test_the_template_can_be_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ demonstrations | length }}{{ separator }}{{ record.topic }}: {{ question }}")
    method = InContextDistillation(demonstrations=2, separator="|", context_prompt=str(mine))
    assert method.context(replace(QUERY, record={"topic": "sums"})) == "2|sums:  Is 3 even? "


def test_the_teacher_is_asked_as_the_student_is() -> None:
    method = InContextDistillation(demonstrations=2, answer_tokens=7)
    (request,) = next(method.collect([QUERY])).requests
    assert request.prompt == method.context(QUERY)
    assert (request.stop, request.sampling.max_tokens, request.sampling.greedy) == (("\n\n\n",), 7, True)
    assert request.origin is not None
    assert request.origin.about == QUERY.question


def test_every_reason_occurs_and_they_add_up() -> None:
    alone = replace(QUERY, answers=("no",))
    asked = [replace(QUERY, number=n) for n in range(4)]
    problems: list[Problem] = [
        *asked, replace(WRITTEN, number=4), replace(QUERY, number=5, gold=None),
        replace(alone, number=6), replace(QUERY, number=7, question="long" * 30),
    ]  # fmt: skip
    rounds = InContextDistillation(example_characters=100).collect(problems)
    requests = list(next(rounds).requests)
    assert len(requests) == 5
    answers = [
        wrote(request, text) for request, text in zip(requests, [" No\n", "maybe", "  ", "", " 10 "], strict=True)
    ]
    answers[3] = Answer.refused(requests[3], "timed out")
    outcomes = finish(rounds, answers)
    assert [outcome.record for outcome in outcomes] == list(range(8))
    assert [outcome.reason for outcome in outcomes] == [
        KEPT, NO_OPTION, EMPTY, NO_TEXT, KEPT, NO_GOLD, ONE_ANSWER, LONG,
    ]  # fmt: skip
    assert [outcome.prediction for outcome in outcomes[:5]] == ["no", "maybe", None, None, "10"]
    assert outcomes[3].detail == "timed out"
    assert sum(count_reasons(outcomes).values()) == 8


def test_examples_are_the_answer_in_its_context_and_the_text_as_a_whole() -> None:
    outcomes = [Outcome(3, 0, KEPT, {"answer": "No"}, "no"), Outcome(3, 1, NO_OPTION, {"answer": "x"}, "x")]
    method = InContextDistillation(demonstrations=2)
    in_context, language = method.examples(QUERY, outcomes)["student"]
    assert (in_context.prompt, in_context.label, in_context.tag) == (method.context(QUERY), "no", "icl")
    assert (language.prompt, language.label, language.tag) == ("", "Is 3 even?\nno", "lm")
    (alone,) = InContextDistillation(beta_lm=0).examples(QUERY, outcomes)["student"]
    assert alone.tag == "icl"


def test_weights_of_hard_and_soft_labels() -> None:
    hard = InContextDistillation(beta_lm=0.25)
    assert hard.tag_weights == {"icl": 1.0, "lm": 0.25}
    assert hard.soft_tag_weights == {}
    method = InContextDistillation(soft_labels=True, alpha_start=0.2, alpha_end=0.8)
    assert method.tag_weights == {"icl": LinearSchedule(0.2, 0.8), "lm": 1.0}
    soft = method.soft_tag_weights["icl"]
    assert isinstance(soft, LinearSchedule)
    assert soft(0.5, 0) == pytest.approx(0.5)
    assert InContextDistillation(soft_labels=True).tag_weights["icl"] == 0.5


def test_the_option_that_is_likeliest_a_token_is_voted_for() -> None:
    method = InContextDistillation(demonstrations=2, votes=3)
    rounds = method.infer([QUERY])
    current = next(rounds)
    assert current.role == "student"
    assert [request.options for request in current.requests] == [("no", "yes")] * 3
    assert [request.prompt for request in current.requests] == [method.context(QUERY, vote) for vote in range(3)]
    answers = [scored(r, *v) for r, v in zip(current.requests, [(1, 2), (2, 1), (0.5, 9)], strict=True)]
    (found,) = finish(rounds, answers)
    assert (found.prediction, found.correct, found.votes, found.task) == ("no", True, ("no", "yes", "no"), "even")
    assert found.chosen


def test_a_tie_is_decided_by_the_scores_of_all_draws() -> None:
    rounds = InContextDistillation(demonstrations=2, votes=2).infer([QUERY])
    answers = [scored(r, *v) for r, v in zip(next(rounds).requests, [(1, 2), (4, 1)], strict=True)]
    second = rounds.send(answers)
    assert (second.name, second.role) == ("Ties", "student")
    assert [request.options for request in second.requests] == [("no", "yes")] * 2
    (found,) = finish(rounds, [scored(r, *v) for r, v in zip(second.requests, [(1, 2), (4, 1)], strict=True)])
    assert (found.prediction, found.votes) == ("yes", ("no", "yes"))


def test_written_answers_are_votes_but_for_case_and_whitespace() -> None:
    query = replace(WRITTEN, pool=tuple(replace(WRITTEN, number=n, question=f"After {n} comes") for n in range(5)))
    rounds = InContextDistillation(demonstrations=1, votes=3, answer_tokens=5).infer([query])
    requests = list(next(rounds).requests)
    assert [(r.options, r.stop, r.sampling.max_tokens) for r in requests] == [((), ("\n\n\n",), 5)] * 3
    (found,) = finish(rounds, [wrote(r, t) for r, t in zip(requests, ["11", " A  b\n", "a b"], strict=True)])
    assert (found.prediction, found.correct, found.chosen) == ("A  b", False, False)
    assert found.votes == ("11", "A  b", "A  b")
    rounds = InContextDistillation(demonstrations=1, votes=3).infer([query])
    (found,) = finish(rounds, [wrote(r, t) for r, t in zip(next(rounds).requests, ["", " \n", "10 "], strict=True)])
    assert (found.prediction, found.correct, found.votes) == ("10", True, ("10",))


def test_a_pool_that_is_shown_whole_gives_one_vote() -> None:
    method = InContextDistillation(demonstrations=6, votes=5)
    assert len(next(method.infer([QUERY])).requests) == 1
    assert len(next(InContextDistillation(demonstrations=0).infer([QUERY])).requests) == 1
    assert len(next(InContextDistillation(demonstrations=5).infer([QUERY])).requests) == 5


def test_a_query_without_an_answer_is_wrong() -> None:
    rounds = InContextDistillation(votes=2, demonstrations=1).infer([QUERY])
    requests = next(rounds).requests
    (found,) = finish(rounds, [Answer.refused(request, "too long") for request in requests])
    assert (found.prediction, found.text, found.correct, found.votes) == (None, "", False, ())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"paradigm": "metta"}, "paradigm"),
        ({"paradigm": "multitask", "test_families": ["x"]}, "test_families"),
        ({"votes": 0}, "votes"),
        ({"shots": 0}, "shots"),
        ({"queries": 0}, "queries"),
        ({"demonstrations": -1}, "demonstrations"),
        ({"separator": ""}, "separator"),
        ({"beta_lm": -1.0}, "beta_lm"),
        ({"soft_labels": True, "alpha_start": 2.0}, "alpha_start"),
        ({"alpha_end": 1.0}, "soft_labels"),
        ({"answer_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        InContextDistillation(**options)


class Half(TextGenerator):
    """Answers the requests that its list names, and counts what it is asked."""

    capabilities: frozenset[Capability] = frozenset({"text"})

    def __init__(self, inner: RecordedGenerator, able: Callable[[str], bool]) -> None:
        self.inner = inner
        self.able = able
        self.asked: list[str] = []

    @property
    def identity(self) -> str:
        return "half"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked += [request.origin.about for request in requests if request.origin]
        return [
            self.inner.generate([each])[0] if self.able(each.text) else Answer.refused(each, "not now")
            for each in requests
        ]


def test_recorded_answers_are_kept_and_a_broken_run_asks_for_the_rest(tasks: Callable[[int], list]) -> None:
    records = tasks(12)
    method = InContextDistillation("multitask", demonstrations=2, most_options=5)
    parts = method.split(problems_from(records, method, "prompt", "completion"), None, 0.25, 0.25, 0)
    problems = parts["train"] + parts["val"]
    recorded = RecordedGenerator(records, "prompt", {"answer": "completion"})
    store = CompletionStore(":memory:")
    first = Half(recorded, lambda text: text.endswith("even?\n"))
    outcomes, _ = collect(method, problems, first, store, progress=False)
    assert count_reasons(outcomes) == {KEPT: 9, NO_TEXT: 36}
    again = Half(recorded, lambda text: True)
    outcomes, (result,) = collect(method, problems, again, store, progress=False)
    assert count_reasons(outcomes) == {KEPT: 45}
    assert (result.asked, result.reused) == (36, 9)
    assert not any(about.endswith("even?") for about in again.asked)
    assert all(o.prediction == p.gold for o, p in zip(outcomes, problems, strict=True))


def test_one_prompt_of_two_tasks_has_the_answer_of_each() -> None:
    records = [
        {"family": "f", "task": task, "prompt": f"Is {n} so?", "completion": names[n % 2]}
        for task, names in {"t": ("yes", "no"), "u": ("true", "false")}.items()
        for n in range(6)
    ]
    method = InContextDistillation("multitask", demonstrations=1)
    parts = method.split(problems_from(records, method, "prompt", "completion"), None, 0, 0, 0)
    teacher = RecordedGenerator(records, "prompt", {**method.context_fields, "answer": "completion"})
    outcomes, _ = collect(method, parts["train"], teacher, progress=False)
    assert [outcome.prediction for outcome in outcomes] == [record["completion"] for record in records]


def test_predictions_of_a_whole_round_stay_with_their_records() -> None:
    class Knowing(TextGenerator):
        capabilities: frozenset[Capability] = frozenset({"text", "logits"})
        batch_size = 3

        @property
        def identity(self) -> str:
            return "knowing"

        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            answers = []
            for each in requests:
                number = int(each.text.rsplit("\n\n\n", 1)[-1].split()[1])
                answers.append(
                    scored(each, 1 - number % 2, number % 2) if each.options else wrote(each, f"{number + 1}")
                )
            return answers

    problems = [replace(QUERY, number=n, question=f"Is {n} even?", gold="no" if n % 2 else "yes") for n in range(8)]
    written = [replace(WRITTEN, number=n, question=f"After {n} comes", gold=f"{n + 1}") for n in range(8, 11)]
    method = InContextDistillation(demonstrations=2, votes=3)
    found, _ = run_rounds(method.infer([*problems, *written]), {"student": Knowing()}, progress=False)
    assert [each.record for each in found] == list(range(11))
    assert method.metrics(found) == {
        "acc": 1.0, "most_frequent": 0.5, "macro_f1": 1.0, "exact_match": 1.0, "rouge_l": 1.0,
    }  # fmt: skip


def test_real_tasks_are_kept_but_for_what_cannot_be_learned(data_folder: Path) -> None:
    from kdlightning.generation.records import load_records

    records = load_records(data_folder / "icl_t0_tasks_share.jsonl.gz", "test")
    method = InContextDistillation(
        "multitask", demonstrations=1, tasks=["glue_qqp", "dbpedia_14"], example_characters=300
    )
    parts = method.split(problems_from(records, method, "prompt", "completion"), None, 0.1, 0.1, 0)
    teacher = RecordedGenerator(records, "prompt", {"answer": "completion"})
    outcomes, _ = collect(method, parts["train"] + parts["val"], teacher, progress=False)
    counts = count_reasons(outcomes)
    assert set(counts) == {KEPT, ONE_ANSWER, LONG}
    assert sum(counts.values()) == len(parts["train"]) + len(parts["val"])
    assert counts[ONE_ANSWER] == 4 * 162
    assert {each.family for each in parts["test"]} == {"glue_qqp"}
