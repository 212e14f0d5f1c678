"""A round of the loop with a scripted teacher, referee and student: no model takes part in what these tests show."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdlightning import BlackBoxData
from kdlightning.blackbox.base import KEPT, Outcome, collect, count_reasons, problems_from
from kdlightning.blackbox.instruction.hard_instructions import NO_STUDENT, HardInstructions
from kdlightning.blackbox.instruction.instruction_following import EMPTY, REFUSED, InstructionFollowing
from kdlightning.blackbox.instruction.new_instructions import EASY, HARD, NOT_NEEDED, SIMILAR, WORD
from kdlightning.blackbox.instruction.referee import NO_SCORES
from kdlightning.blackbox.instruction.rouge import rouge_l
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion
from kdlightning.generation.store import CompletionStore

FOLLOWING = {"teacher_tokens": 64}


def method(**options: Any) -> HardInstructions:
    given = {"hard": 6, "easy": 5, "referee_retries": 2, **options}
    return HardInstructions(InstructionFollowing("input", **FOLLOWING), **given)


def outcomes_of(one: HardInstructions, records: list[Any], cast: dict[str, Any], store: Any = None) -> list[Outcome]:
    others = {role: player for role, player in cast.items() if role != "teacher"}
    problems = problems_from(records, one, "instruction", "output")
    outcomes, _ = collect(one, problems, cast["teacher"], store, others=others, progress=False)
    return outcomes


def data(records: Any, cast: dict[str, Any], place: Path, one: HardInstructions, **options: Any) -> BlackBoxData:
    return BlackBoxData(
        one,
        records,
        question_field="instruction",
        gold_field="output",
        generator=cast["teacher"],
        referee=cast["referee"],
        earlier_students={"student": cast["student"]},
        store=str(place / "answers.sqlite"),
        val_split=0,
        progress=False,
        **{"test_split": 10, "folder": str(place / "round"), **options},
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_teacher_student_and_referee_are_asked_in_turn(cast: Any, pool: Any) -> None:
    one, seen = method(), []
    rounds = one.collect(problems_from(pool(3), one, "instruction", "output"))
    current = next(rounds)
    players = cast()
    try:
        while True:
            seen.append((current.role, len(current.requests)))
            current = rounds.send(players[current.role].generate(current.requests))
    except StopIteration:
        pass
    assert seen[:3] == [("teacher", 3), ("student", 3), ("referee", 6)]
    assert {role for role, _ in seen[3:]} <= {"referee", "teacher"}
    assert seen[-1][0] == "teacher"
    teacher = players["teacher"].asked[0][0]
    assert teacher == (
        "### Instruction:\nWrite 0 lines on apples for somebody of 0 years\n\nMind the year 1900.\n\n### Response:\n"
    )
    assert players["student"].asked[0][0] == teacher
    assert (
        "[Instruction]\nWrite 0 lines on apples for somebody of 0 years\n\nMind the year 1900.\n\n[The Start"
        in (players["referee"].asked[0][0])
    )


def test_hard_is_what_the_teacher_does_better_by_the_threshold() -> None:
    one = method(hard=9, easy=9, attempts=1)
    records = [{"instruction": f"Do {n} things now", "input": "", "output": ""} for n in range(3)]
    problems = problems_from(records, one, "instruction", "output")
    scores = {0: ((6, 5), (5, 6)), 1: ((6, 5), (5.1, 6)), 2: ((8, 2), (6, 5))}
    rounds = one.collect(problems)

    def told(current: Any, texts: list[str]) -> list[Answer]:
        return [Answer(r, {r.first_sample: Completion(t)}) for r, t in zip(current.requests, texts, strict=True)]

    students = rounds.send(told(next(rounds), ["good"] * 3))
    referee = rounds.send(told(students, ["bad"] * 3))
    lines = [f"Assistant 1: {a}\nAssistant 2: {b}" for record in range(3) for a, b in scores[record]]
    writing = rounds.send(told(referee, lines))
    # d is exactly 1.0 for record 0, which is hard; 0.95 for record 1; (8 + 5)/2 - (2 + 6)/2 = 2.5 for record 2.
    order = [next(n for n in range(3) if f"Do {n} things" in request.prompt) for request in writing.requests]
    kinds = [HARD if "same task type" in request.prompt else EASY for request in writing.requests]
    assert dict(zip(order, kinds, strict=True)) == {0: HARD, 1: EASY, 2: HARD}
    with pytest.raises(StopIteration) as end:
        rounds.send(told(writing, [f"Paint {n} {w} doors in your own village" for n, w in enumerate("abc")]))
    outcomes = end.value.value
    assert [(o.texts["teacher_score"], o.texts["student_score"]) for o in outcomes] == [
        ("6", "5"), ("6", "5.05"), ("6.5", "4"),
    ]  # fmt: skip


def test_every_record_and_try_is_accounted_for(cast: Any, pool: Any) -> None:
    players = cast()
    outcomes = outcomes_of(method(attempts=2), pool(60), players)
    places = Counter((outcome.record, outcome.sample) for outcome in outcomes)
    assert max(places.values()) == 1
    assert {record for record, _ in places} == set(range(60))
    counts = count_reasons(outcomes)
    assert sum(counts.values()) == len(outcomes)
    assert counts[KEPT] == 11
    assert {WORD, NO_SCORES, NOT_NEEDED} <= set(counts)
    assert sum(o.kept and o.prediction == HARD for o in outcomes) == 6
    # Of a text without scores, three were asked for.
    by_sample = Counter(sample for _, sample in players["referee"].asked)
    assert by_sample[0] == 120
    assert by_sample[0] > by_sample[1] > by_sample[2] > 0
    assert set(by_sample) == {0, 1, 2}


def test_new_instructions_resemble_nothing_in_the_pool(cast: Any, pool: Any) -> None:
    records = pool(40)
    outcomes = outcomes_of(method(hard=30, easy=30, attempts=3, max_similarity=0.3), records, cast())
    kept = [outcome.texts["new_instruction"] for outcome in outcomes if outcome.kept]
    dropped = [outcome for outcome in outcomes if outcome.reason == SIMILAR]
    assert kept
    assert dropped
    everything = [f"{record['instruction']} {record['input']}" for record in records] + kept
    for text in kept:
        assert sorted(rouge_l(other, text) for other in everything)[-2] <= 0.3
    for outcome in dropped:
        assert max(rouge_l(other, outcome.texts["new_instruction"]) for other in everything) > 0.3
        assert outcome.detail.startswith("ROUGE-L 0.")


def test_what_teacher_or_student_do_not_answer_is_not_judged(cast: Any, pool: Any) -> None:
    players = cast()
    scripts = {"lines on apples": "", "lines on bridges": "I'm sorry, but I can't write that."}
    answer = players["teacher"].rule

    def teacher(text: str, sample: int) -> Any:
        found = [said for part, said in scripts.items() if part in text and text.startswith("###")]
        return found[0] if found else answer(text, sample)

    players["teacher"].rule = teacher
    players["student"].rule = lambda text, sample: None if "lines on clouds" in text else ""
    outcomes = outcomes_of(method(hard=1, easy=1), pool(20), players)
    reasons = {outcome.record: outcome for outcome in outcomes}
    assert [reasons[n].reason for n in (0, 10, 1, 11, 2, 12)] == [
        EMPTY,
        EMPTY,
        REFUSED,
        REFUSED,
        NO_STUDENT,
        NO_STUDENT,
    ]
    assert reasons[2].detail == "the script has no line"
    assert reasons[2].texts["response"].startswith("A full answer")
    # An empty answer of the student is judged: it is a bad one.
    assert all(reasons[n].reason not in (EMPTY, NO_STUDENT) for n in range(3, 10))
    assert len(players["student"].asked) == 16


def test_a_referee_without_scores_leaves_nothing_to_do(cast: Any, pool: Any) -> None:
    players = cast()
    players["referee"].rule = lambda text, sample: "I like both."
    outcomes = outcomes_of(method(), pool(5), players)
    assert count_reasons(outcomes) == {KEPT: 0, NO_SCORES: 5}
    assert outcomes[0].texts["review, teacher first"] == "I like both."
    assert outcomes[0].detail == "asked 3 times, teacher first"
    assert len(players["teacher"].asked) == 5


# -- rounds and their products -------------------------------------------------------------------------------------


def test_pools_hold_what_the_next_round_needs(cast: Any, pool: Any, tmp_path: Path) -> None:
    made = data(pool(50), cast(), tmp_path, method(replay=4))
    made.text.prepare()
    folder = tmp_path / "round"
    train, cache, test = (rows(folder / f"{name}_pool.jsonl") for name in ("train", "cache", "test"))
    assert len(cache) == 40 + 11
    assert len(test) == 10
    assert len(train) == 11 + 4
    assert {row["instruction"] for row in test}.isdisjoint(row["instruction"] for row in cache)
    assert list(train[0]) == ["instruction", "input", "output", "kind", "seed"]
    assert train[:11] == cache[40:]
    assert Counter(row["kind"] for row in train[:11]) == {HARD: 6, EASY: 5}
    assert all(row["output"] is None and row["seed"] for row in train[:11])
    assert [row["instruction"] for row in cache[:40]] == [problem.question for problem in made.problems["train"]]
    report = rows(folder / "report.jsonl")
    scored = {row["record"]: row["texts"] for row in report if "teacher_score" in row["texts"]}
    difference = {n: float(t["teacher_score"]) - float(t["student_score"]) for n, t in scored.items()}
    hardest = sorted(difference, key=lambda n: -difference[n])[:4]
    by_number = {problem.number: problem for problem in made.problems["train"]}
    assert [row["instruction"] for row in train[11:]] == [by_number[n].question for n in hardest]
    assert train[11]["output"].startswith("Answer ")
    facts = json.loads((folder / "pools.json").read_text())
    assert facts["judged"] == facts[HARD] + facts[EASY] == len(scored)
    assert facts["new"] == {HARD: 6, EASY: 5}
    assert facts["replayed"] == 4
    assert facts["outcomes"] == {**Counter(row["reason"] for row in report)}
    total = [sum(float(t[f"{who}_score"]) for t in scored.values()) for who in ("student", "teacher")]
    assert facts["relative_score"] == pytest.approx(total[0] / total[1])


def test_a_round_goes_on_in_its_middle(cast: Any, pool: Any, tmp_path: Path) -> None:
    whole = cast()
    data(pool(30), whole, tmp_path / "whole", method()).text.prepare()
    expected = {path.name: path.read_text() for path in (tmp_path / "whole" / "round").iterdir()}
    asked = {role: set(player.asked) for role, player in whole.items()}
    # Broken off while the teacher answers, the student answers, the referee judges, and the teacher writes.
    for role, after in (("teacher", 7), ("student", 11), ("referee", 23), ("teacher", 26)):
        folder = tmp_path / f"{role}{after}"
        broken, again = cast(), cast()
        broken[role].breaks_after = after
        with pytest.raises(KeyboardInterrupt):
            data(pool(30), broken, folder, method()).text.prepare()
        assert not (folder / "round" / "cache_pool.jsonl").exists()
        data(pool(30), again, folder, method()).text.prepare()
        assert {path.name: path.read_text() for path in (folder / "round").iterdir()} == expected
        for one in asked:
            # What was answered before is not asked again; together they are what an unbroken round asks.
            assert not set(broken[one].asked) & set(again[one].asked)
            assert set(broken[one].asked) | set(again[one].asked) == asked[one]


def test_half_a_store_asks_for_the_rest_alone(cast: Any, pool: Any) -> None:
    first, second, third = cast(), cast(), cast()
    store = CompletionStore(":memory:")
    outcomes_of(method(), pool(10), first, store)
    outcomes = outcomes_of(method(), pool(20), second, store)
    assert {text for text, _ in second["student"].asked}.isdisjoint(text for text, _ in first["student"].asked)
    assert len(second["student"].asked) == 10
    assert outcomes == outcomes_of(method(), pool(20), third)


def test_rounds_follow_each_other_over_one_store(cast: Any, pool: Any, tmp_path: Path) -> None:
    players = cast()
    data(pool(40), players, tmp_path, method()).text.prepare()
    first = tmp_path / "round"
    asked = set(players["teacher"].asked)
    later = cast()
    # The student of the second round is another one.
    later["student"].name = "scripted student, second round"
    options = {"test_path": str(first / "test_pool.jsonl"), "folder": str(tmp_path / "second")}
    data(str(first / "cache_pool.jsonl"), later, tmp_path, method(), **options).text.prepare()
    second = tmp_path / "second"
    assert (second / "test_pool.jsonl").read_text() == (first / "test_pool.jsonl").read_text()
    cache = rows(second / "cache_pool.jsonl")
    assert len(cache) == 30 + 11 + len(rows(second / "train_pool.jsonl"))
    texts = [row["instruction"] for row in cache]
    assert len(set(texts)) == len(texts)
    # The teacher's answers to the old instructions are in the store; the new student is asked everything.
    answers = [text for text, _ in later["teacher"].asked if text.startswith("###")]
    assert len(answers) == 11
    assert asked.isdisjoint(later["teacher"].asked)
    assert len(later["student"].asked) == 41
    assert [row["seed"] for row in cache[30:41]] == [row["seed"] for row in rows(first / "train_pool.jsonl")]


def test_a_round_without_a_new_instruction_is_a_result(cast: Any, pool: Any, tmp_path: Path) -> None:
    players = cast()
    players["referee"].rule = lambda text, sample: "?"
    data(pool(20), players, tmp_path, method(replay=3)).text.prepare()
    train = rows(tmp_path / "round" / "train_pool.jsonl")
    assert train == rows(tmp_path / "round" / "cache_pool.jsonl")[:3]
    facts = json.loads((tmp_path / "round" / "pools.json").read_text())
    assert (facts["judged"], facts["relative_score"], facts["new"]) == (0, None, {HARD: 0, EASY: 0})
    assert facts["outcomes"] == {KEPT: 0, NO_SCORES: 10}


# -- bad input -----------------------------------------------------------------------------------------------------


def test_it_trains_nobody(cast: Any, pool: Any, tmp_path: Path) -> None:
    made = data(pool(20), cast(), tmp_path, method())
    with pytest.raises(ConfigurationError, match="HardInstructions trains no student: kdlightning generate asks"):
        made.setup("fit")
    with pytest.raises(ConfigurationError, match="HardInstructions trains no language model"):
        data(pool(20), cast(), tmp_path, method(), student="student")


def test_a_missing_student_is_named(cast: Any, pool: Any, tmp_path: Path) -> None:
    players = cast()
    problems = problems_from(pool(3), method(), "instruction", "output")
    with pytest.raises(ConfigurationError, match="nobody plays the 'student', only teacher"):
        collect(method(), problems, players["teacher"], progress=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"replay": -1}, "replay is -1"),
        ({"hard": -1}, "hard is -1"),
        ({"attempts": 0}, "attempts is 0"),
        ({"max_similarity": 2.0}, "max_similarity is 2.0"),
        ({"referee_retries": -1}, "referee_retries is -1"),
        ({"referee_temperature": 0.0}, "referee_temperature is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"student_tokens": 0}, "max_tokens is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        method(**options)


def test_equal_methods_show_the_same(cast: Callable[[], Any]) -> None:
    assert method() == method()
    assert repr(method()) == repr(method())
    assert method() != method(threshold=2.0)
