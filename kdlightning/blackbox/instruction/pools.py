"""The pools of instructions that a round of Lion's loop leaves for the next one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlightning.blackbox.base import Outcome, Problem, count_reasons
from kdlightning.blackbox.instruction.instruction_following import InstructionFollowing
from kdlightning.blackbox.instruction.new_instructions import KINDS
from kdlightning.blackbox.report import write_whole

if TYPE_CHECKING:
    from kdlightning.blackbox.instruction.hard_instructions import HardInstructions

TRAIN_POOL, CACHE_POOL, TEST_POOL = "train_pool.jsonl", "cache_pool.jsonl", "test_pool.jsonl"


def write_pools(
    method: HardInstructions, folder: Path, problems: Sequence[Problem], outcomes: Sequence[Outcome]
) -> list[Path]:
    """Writes `train_pool.jsonl`, `cache_pool.jsonl` and `pools.json`.

    A row has instruction, input, output (the gold answer, null for what nobody has answered yet), kind ("hard" or
    "easy"; null for what was not judged) and seed (the instruction that a new one was made from, or null).

    Args:
        method: the method.
        folder: where to.
        problems: the cache pool.
        outcomes: of the method.

    Returns:
        The files.
    """
    kinds = {outcome.record: outcome.prediction for outcome in outcomes}
    by_number = {problem.number: problem for problem in problems}
    new = [_new(method.following, by_number[outcome.record], outcome) for outcome in outcomes if outcome.kept]
    scores = _scores(outcomes)
    order = sorted(problems, key=lambda problem: _difference(scores, problem.number), reverse=True)
    old = {problem.number: _old(method.following, problem, kinds.get(problem.number)) for problem in problems}
    replayed = [old[problem.number] for problem in order[: method.replay]]
    facts = _facts(outcomes, scores) | {"replayed": len(replayed)}
    files = {
        TRAIN_POOL: _lines([*new, *replayed]),
        CACHE_POOL: _lines([*old.values(), *new]),
        "pools.json": json.dumps(facts, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    return [folder / name for name in files]


def write_test_pool(following: InstructionFollowing, folder: Path, problems: Sequence[Problem]) -> list[Path]:
    """Writes `test_pool.jsonl`: the test split in the form of the other pools."""
    write_whole(folder / TEST_POOL, _lines(_old(following, problem, None) for problem in problems))
    return [folder / TEST_POOL]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _old(following: InstructionFollowing, problem: Problem, kind: str | None) -> dict[str, Any]:
    row = {"instruction": problem.question, "input": following.context(problem).get("input", "")}
    return {**row, "output": problem.gold, "kind": kind, "seed": problem.record.get("seed")}


def _new(following: InstructionFollowing, problem: Problem, outcome: Outcome) -> dict[str, Any]:
    row = {"instruction": outcome.texts["new_instruction"], "input": "", "output": None}
    return {**row, "kind": outcome.prediction, "seed": following.instruction(problem)}


def _scores(outcomes: Sequence[Outcome]) -> dict[int, tuple[float, float]]:
    """Scores of teacher and student by record."""
    return {
        outcome.record: (float(outcome.texts["teacher_score"]), float(outcome.texts["student_score"]))
        for outcome in outcomes
        if "teacher_score" in outcome.texts
    }


def _difference(scores: Mapping[int, tuple[float, float]], record: int) -> float:
    if record not in scores:
        return float("-inf")
    teacher, student = scores[record]
    return teacher - student


def _facts(outcomes: Sequence[Outcome], scores: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    kinds = {outcome.record: outcome.prediction for outcome in outcomes if outcome.record in scores}
    teacher, student = (sum(pair[who] for pair in scores.values()) for who in (0, 1))
    return {
        "judged": len(scores),
        **{kind: sum(found == kind for found in kinds.values()) for kind in KINDS},
        # The paper's measure, of this referee and on this pool: the student's scores as a share of the teacher's.
        "relative_score": student / teacher if teacher else None,
        "new": {kind: sum(outcome.kept and outcome.prediction == kind for outcome in outcomes) for kind in KINDS},
        "outcomes": count_reasons(outcomes),
    }
