"""A scripted teacher, referee and student: deterministic, made of rules, and no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kdlightning.generation.base import Answer, Completion, Request, TextGenerator

TOPICS = ("apples", "bridges", "clouds", "deserts", "engines", "forests", "guitars", "harbours", "islands", "jewels")


class ScriptedGenerator(TextGenerator):
    """Answers by a rule: a function of the request's text and the sample's number.

    Attributes:
        asked: what it was asked, as (text, sample) in order.
        breaks_after: raises KeyboardInterrupt instead of the answer after so many.
    """

    def __init__(self, rule: Callable[[str, int], str | Completion | None], name: str = "scripted") -> None:
        self.rule = rule
        self.name = name
        self.asked: list[tuple[str, int]] = []
        self.breaks_after: int | None = None

    @property
    def identity(self) -> str:
        return self.name

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        answer = Answer(request)
        for number in request.numbers:
            if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
                raise KeyboardInterrupt
            self.asked.append((request.text, number))
            said = self.rule(request.text, number)
            if said is None:
                answer.failures[number] = "the script has no line"
            else:
                answer.completions[number] = said if isinstance(said, Completion) else Completion(said)
        return answer


def _number(text: str, most: int) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % most


def teacher_rule(text: str, sample: int) -> str:
    """Answers at length; as a writer makes up an instruction, now and then one that must be dropped."""
    if not text.startswith("I want you to act as an Instruction Creator."):
        return f"A full answer in {3 + _number(text, 9)} parts: " + "because of this and that, " * (
            _number(text, 4) + 1
        )
    draw = _number(f"{text} {sample}", 1000)
    if draw % 5 == 0:
        return "Follow this instruction about nothing."
    topic, other = TOPICS[draw % 10], TOPICS[draw // 10 % 10]
    return f"Compare {topic} number {draw} with {other} of kind {_number(text, 500)} in words {sample} {draw * 7}"


def referee_rule(text: str, sample: int) -> str:
    """Prefers the longer answer, and whoever comes first by half a point; forgets its scores at times."""
    one, other = re.findall(r"Answer\]\n(.*?)\n\[The End", text, re.DOTALL)
    if _number(f"{text} {sample}", 4) == 0:
        return "Evaluation evidence: both are fine."
    scores = min(9.5, 1 + len(one) / 10) + 0.5, min(10.0, 1 + len(other) / 10)
    return (
        f"Evaluation evidence: …\nScore of the Assistant 1: {scores[0]:.1f}\nScore of the Assistant 2: {scores[1]:.1f}"
    )


def student_rule(text: str, sample: int) -> str:
    """Short answers, of which some are as long as the teacher's."""
    return "An answer. " * (1 + _number(text, 12))


@pytest.fixture
def cast() -> Callable[[], dict[str, Any]]:
    """Makes scripted players by role."""
    return lambda: {
        "teacher": ScriptedGenerator(teacher_rule, "scripted teacher"),
        "referee": ScriptedGenerator(referee_rule, "scripted referee"),
        "student": ScriptedGenerator(student_rule, "scripted student"),
    }


@pytest.fixture
def pool() -> Callable[[int], list[dict[str, Any]]]:
    """Makes records with the fields instruction, input and output."""
    return lambda count: [
        {
            "instruction": f"Write {number} lines on {TOPICS[number % 10]} for somebody of {number * 3} years",
            "input": f"Mind the year {1900 + number}." if number % 3 == 0 else "",
            "output": f"Answer {number} of a teacher.",
        }
        for number in range(count)
    ]
