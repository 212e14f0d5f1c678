"""The baseline of black-box methods: the student learns the right answers, and no teacher is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from kdlightning.blackbox.answers import AnswerKind
from kdlightning.blackbox.base import KEPT, Example, Outcome, Problem, Rounds
from kdlightning.blackbox.question_answering import NO_GOLD, QuestionAnswering, StudentKind
from kdlightning.blackbox.templates import render


class AnswerOnly(QuestionAnswering):
    """Fine-tuning on gold answers alone, "{question} ###" → " {answer}": what a method must beat at equal budget.

    The teacher is asked nothing; records without a gold answer are dropped. Inference is that of Fine-tune-CoT.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        student_kind: "decoder_only", or "encoder_decoder" (input without " ###", label without its leading space).
        inference_tokens: most tokens of a student's answer.
        question_prompt: template of the question, for those whose records hold more of it, such as choices
            (`answer_only/choices.jinja`); it may use `question` and `record`. None is the question itself.
    """

    labels_alone: ClassVar[bool] = True
    asks_teacher: bool = False

    def __init__(
        self,
        kind: AnswerKind = "number",
        choices: str = "ABCDE",
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 64,
        question_prompt: str | None = None,
    ) -> None:
        super().__init__(kind, choices, student_kind, inference_tokens)
        self.question_prompt = question_prompt

    def prompt(self, problem: Problem) -> str:
        """`{question} ###`, or the bare question for encoder–decoders."""
        if self.question_prompt is None:
            return super().prompt(problem)
        question = problem.question.strip()
        return super().prompt(
            replace(problem, question=render(self.question_prompt, question=question, record=problem.record))
        )

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """No round at all."""
        yield from ()
        return [Outcome(each.number, 0, KEPT if self.gold(each) is not None else NO_GOLD) for each in problems]

    def read(self, text: str) -> str | None:
        """As in any text; an answer that is text is all that the student wrote, since it learned to write no more."""
        return text.strip() or None if self.kind == "text" else super().read(text)

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The right answer, once a record."""
        answer = self.label(str(self.gold(problem)))
        kept = [outcome for outcome in outcomes if outcome.kept]
        return {"student": [Example(problem.number, self.prompt(problem), answer) for _ in kept]}
