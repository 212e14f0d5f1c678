"""Rounds, roles and the counting of outcomes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kdlightning.blackbox.base import (
    KEPT,
    BlackBoxMethod,
    Example,
    Outcome,
    Prediction,
    Problem,
    Round,
    Rounds,
    collect,
    count_reasons,
    problems_from,
    run_rounds,
)
from kdlightning.blackbox.cot.fine_tune_cot import FineTuneCoT
from kdlightning.blackbox.cot.scott import SCOTT
from kdlightning.blackbox.icl.in_context_distillation import InContextDistillation
from kdlightning.blackbox.icl.measures import TaskPrediction
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.store import CompletionStore


class Debate(BlackBoxMethod):
    """A teacher writes, a referee judges what it wrote."""

    def __init__(self, twice: bool = False) -> None:
        self.twice = twice

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        first = yield Round("Writing", [Request(problem.question) for problem in problems])
        drafts = ["".join(answer.texts) for answer in first]
        second = yield Round("Judging", [Request(draft) for draft in drafts], role="referee")
        outcomes = [
            Outcome(problem.number, 0, KEPT if answer.texts == ["good"] else "bad", {"draft": draft})
            for problem, draft, answer in zip(problems, drafts, second, strict=True)
        ]
        return outcomes * (2 if self.twice else 1)

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        return {}

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        yield Round("Nothing", [])
        return []


WRITER = RecordedGenerator([{"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": "y"}])
REFEREE = RecordedGenerator([{"prompt": "x", "answer": "good"}, {"prompt": "y", "answer": "poor"}])
PROBLEMS = [Problem(0, "a", None), Problem(1, "b", None)]


def test_each_role_is_played_by_its_generator() -> None:
    outcomes, results = run_rounds(Debate().collect(PROBLEMS), {"teacher": WRITER, "referee": REFEREE}, progress=False)
    assert [(outcome.texts["draft"], outcome.kept) for outcome in outcomes] == [("x", True), ("y", False)]
    assert [result.asked for result in results] == [2, 2]


def test_rounds_are_resumed_from_a_store() -> None:
    store = CompletionStore(":memory:")
    players = {"teacher": WRITER, "referee": REFEREE}
    first, _ = run_rounds(Debate().collect(PROBLEMS), players, store, progress=False)
    again, results = run_rounds(Debate().collect(PROBLEMS), players, store, progress=False)
    assert again == first
    assert [(result.asked, result.reused) for result in results] == [(0, 2), (0, 2)]


def test_a_missing_role_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nobody plays the 'referee', only teacher: give .*referee"):
        collect(Debate(), PROBLEMS, WRITER, progress=False)


def test_two_outcomes_of_one_sample_are_a_mistake_of_the_method() -> None:
    class Alone(Debate):
        def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
            yield Round("Nothing", [])
            return [Outcome(0, 0, KEPT)] * 2

    with pytest.raises(RuntimeError, match="two outcomes to one sample"):
        collect(Alone(), PROBLEMS, WRITER, progress=False)


def test_what_a_method_needs_of_its_teacher_is_checked() -> None:
    class Demanding(Debate):
        needs = frozenset({"text", "logits"})

    with pytest.raises(ConfigurationError, match="Demanding needs logits, and RecordedGenerator gives only text"):
        collect(Demanding(), PROBLEMS, WRITER, progress=False)


def test_methods_of_equal_options_are_equal() -> None:
    assert Debate() == Debate()
    assert Debate() != Debate(twice=True)
    assert Debate() != object()


def test_reasons_add_up_with_kept_first() -> None:
    outcomes = [Outcome(n, 0, reason) for n, reason in enumerate(["bad", KEPT, "late", "bad", KEPT])]
    assert list(count_reasons(outcomes).items()) == [(KEPT, 2), ("bad", 2), ("late", 1)]
    assert count_reasons([]) == {KEPT: 0}


def test_problems_keep_order_fields_and_missing_gold() -> None:
    records = [{"q": {"text": "a"}, "gold": 1.0}, {"q": {"text": "b"}, "gold": None}]
    found = problems_from(records, Debate(), "q.text", "gold")
    assert [(p.number, p.question, p.gold) for p in found] == [(0, "a", "1.0"), (1, "b", None)]
    assert found[0].record is records[0]
    with pytest.raises(ConfigurationError, match="no field 'answer'"):
        problems_from(records, Debate(), "q.text", "answer")


def test_accuracy_is_the_default_metric() -> None:
    predictions = [Prediction(n, "", "", None, None, n == 0) for n in range(4)]
    assert Debate().metrics(predictions) == {"acc": 0.25}
    assert Debate().metrics([]) == {}


@pytest.mark.parametrize("method", [FineTuneCoT(), SCOTT(), InContextDistillation()])
def test_records_without_a_gold_answer_are_not_counted_as_wrong(method: BlackBoxMethod) -> None:
    known = TaskPrediction(0, "", "7", "7", "7", True, "sums", True)
    unknown = TaskPrediction(1, "", "8", "8", None, False, "sums", True)
    assert method.metrics([known, unknown])["acc"] == 1.0
    assert method.metrics([unknown]) == {}
