"""How a teacher is asked to explain an answer that it is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdlightning.blackbox.base import Problem
from kdlightning.blackbox.demonstrations import Demonstrations
from kdlightning.blackbox.question_answering import choices_of
from kdlightning.blackbox.templates import render

EXPLAINED = ("question", "answer", "rationale")
"""What a demonstration of an explanation must have; `choices` are a list that it may have."""


@dataclass(frozen=True)
class ExplanationPrompt:
    """ "Q: … A: The answer is X.", behind demonstrations that go on with a rationale.

    Attributes:
        template: it may use `question`, `choices`, `answer`, `demonstrations` and `record`.
        choices_field: field of the records with the list of choices that a question offers; None if it has none.
        demonstrations: with the fields question, choices, answer and rationale.
    """

    template: str
    choices_field: str | None = None
    demonstrations: Demonstrations = field(default_factory=Demonstrations)

    def choices(self, problem: Problem) -> list[str]:
        """The choices that a question offers."""
        return choices_of(problem, self.choices_field)

    def __call__(self, problem: Problem, answer: str) -> str:
        """The prompt that asks why this is the answer."""
        return render(
            self.template,
            question=problem.question.strip(),
            choices=self.choices(problem),
            answer=answer,
            demonstrations=self.demonstrations(problem),
            record=problem.record,
        )
