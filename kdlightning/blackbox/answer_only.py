"""The baseline of black-box methods: the student learns the right answers, and no teacher is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kdlightning.blackbox.answers import AnswerKind
from kdlightning.blackbox.base import KEPT, Example, Outcome, Problem, Rounds
from kdlightning.blackbox.question_answering import NO_GOLD, QuestionAnswering, StudentKind


class AnswerOnly(QuestionAnswering):
    """Fine-tuning on gold answers alone, "{question} ###" → " {answer}": what a method must beat at equal budget.

    The teacher is asked nothing; records without a gold answer are dropped. Inference is that of Fine-tune-CoT.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        student_kind: "decoder_only", or "encoder_decoder" (input without " ###", label without its leading space).
        inference_tokens: most tokens of a student's answer.
    """

    labels_alone: ClassVar[bool] = True

    def __init__(
        self,
        kind: AnswerKind = "number",
        choices: str = "ABCDE",
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 64,
    ) -> None:
        super().__init__(kind, choices, student_kind, inference_tokens)

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """No round at all."""
        yield from ()
        return [Outcome(each.number, 0, KEPT if self.gold(each) is not None else NO_GOLD) for each in problems]

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The right answer, once a record."""
        answer = self.label(str(self.gold(problem)))
        kept = [outcome for outcome in outcomes if outcome.kept]
        return {"student": [Example(problem.number, self.prompt(problem), answer) for _ in kept]}
