"""How a teacher is asked to explain an answer that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdlightning.blackbox.base import Problem
from kdlightning.blackbox.question_answering import choices_of
from kdlightning.blackbox.templates import render
from kdlightning.generation.records import field_of, load_records


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
    demonstrations: list[dict[str, Any]] = field(default_factory=list)

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
            demonstrations=self.demonstrations,
            record=problem.record,
        )


def explained(records: str | list[dict[str, Any]] | None, owner: str) -> list[dict[str, Any]]:
    """Demonstrations of explanations: a file or records, with the fields question, answer, rationale, maybe choices."""
    return [] if records is None else [_shown(record) for record in load_records(records, owner)]


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: str(field_of(record, name)).strip() for name in ("question", "answer", "rationale")}
    return {**fields, "choices": list(record.get("choices") or ())}
