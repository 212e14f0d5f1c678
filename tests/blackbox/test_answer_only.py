"""The baseline that asks no teacher."""

from __future__ import annotations

import pytest

from kdlightning.blackbox.answer_only import AnswerOnly
from kdlightning.blackbox.base import problems_from, run_rounds
from kdlightning.generation.base import Answer, Completion, Request, TextGenerator


class Echo(TextGenerator):
    """Says the same to everything."""

    batch_size = 8

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def identity(self) -> str:
        return self.text

    def generate(self, requests: list[Request]) -> list[Answer]:  # type: ignore[override]
        return [Answer(request, {0: Completion(self.text)}) for request in requests]


@pytest.mark.parametrize(
    ("kind", "said", "gold", "read"),
    [
        ("text", " Harh ", "harh", "Harh"),
        ("text", "  ", "harh", None),
        ("number", " 42.0", "42", "42"),
        ("yes_no", "Yes", "yes", "yes"),
    ],
)
def test_all_that_the_student_writes_is_its_answer(kind: str, said: str, gold: str, read: str | None) -> None:
    method = AnswerOnly(kind=kind)  # type: ignore[arg-type]
    problems = problems_from([{"question": "Which?", "answer": gold}], method, "question", "answer")
    (prediction,), _ = run_rounds(method.infer(problems), {"student": Echo(said)}, progress=False)
    assert prediction.prediction == read
    assert prediction.correct is (read is not None)
