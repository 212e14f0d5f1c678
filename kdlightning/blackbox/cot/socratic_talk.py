"""What was asked and answered about a problem so far, as students are given it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kdlightning.blackbox.base import Problem, Round, Rounds
from kdlightning.blackbox.cot.socratic_chain import FINAL, MARK, NEXT
from kdlightning.generation.base import Answer, Request, Sampling


@dataclass
class Talk:
    """A conversation of two students about a problem.

    Attributes:
        problem: the problem.
        steps: pairs of subquestion and solution.
        waiting: subquestions that are not answered yet.
    """

    problem: Problem
    steps: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def add(self, question: str, solution: str) -> None:
        """Adds an answered subquestion."""
        self.steps.append((question, solution))

    @property
    def prompt(self) -> str:
        """What the decomposer is given: `{P} ### q_1 ** s_1 ###`."""
        parts = [self.problem.question.strip(), *(f"{question} {MARK} {said}" for question, said in self.steps)]
        return "".join(f"{part} {NEXT} " for part in parts).rstrip()

    def asking(self, question: str) -> str:
        """What the solver is given: `{P} ### q_1 ** s_1 ### q_2 **`."""
        return f"{self.prompt} {question} {MARK}"

    @property
    def text(self) -> str:
        """Line by line."""
        return "\n".join(f"{question} {MARK} {said}" for question, said in self.steps)


def take_turns(talks: Sequence[Talk], most: int, questions: Sampling, solutions: Sampling) -> Rounds[None]:
    """The decomposer asks once and the solver answers, until each problem's decomposer is done.

    Args:
        talks: one for each problem; they are continued.
        most: subquestions of a problem after which it ends.
        questions: how the decomposer writes.
        solutions: how the solver writes.
    """
    for _ in range(most):
        if not talks:
            return
        yield from ask(talks, 1, questions)
        talks = [talk for talk in talks if talk.waiting]
        yield from solve(talks, solutions)


def ask(talks: Sequence[Talk], most: int, sampling: Sampling) -> Rounds[None]:
    """One round in which the decomposer asks what is waiting then, at most so many subquestions of each problem."""
    requests = [Request(talk.prompt, sampling=sampling) for talk in talks]
    answers = yield Round("Subquestions", requests, role="decomposer")
    for talk, answer in zip(talks, answers, strict=True):
        talk.waiting = _subquestions(answer)[:most]


def solve(talks: Sequence[Talk], sampling: Sampling) -> Rounds[None]:
    """Has the solver answer all that is waiting, one subquestion of each problem in a round."""
    while asked := [talk for talk in talks if talk.waiting]:
        requests = [Request(talk.asking(talk.waiting[0]), sampling=sampling) for talk in asked]
        answers = yield Round("Solutions", requests, role="solver")
        for talk, answer in zip(asked, answers, strict=True):
            talk.add(talk.waiting.pop(0), " ".join("".join(answer.texts).split()))


def _subquestions(answer: Answer) -> list[str]:
    text = "".join(answer.texts).partition(FINAL)[0]
    parts = (" ".join(part.split()) for part in text.replace(NEXT, MARK).split(MARK))
    return [part for part in parts if part]
