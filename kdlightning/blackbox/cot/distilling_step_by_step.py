"""Distilling step-by-step: a student learns to answer and to write its teacher's rationales, with two prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from kdlightning.blackbox.answers import AnswerKind
from kdlightning.blackbox.base import KEPT, NO_TEXT, Outcome, Problem, Rounds
from kdlightning.blackbox.cot.fine_tune_cot import NO_ANSWER, WRONG
from kdlightning.blackbox.cot.two_tasks import CHAIN, TwoTasks
from kdlightning.blackbox.demonstrations import Choice
from kdlightning.blackbox.question_answering import StudentKind
from kdlightning.errors import ConfigurationError

_SOURCES = {
    WRONG: "chain of thought to another answer",
    NO_ANSWER: "chain of thought without an answer",
    NO_TEXT: "chain of thought without an answer",
}


class DistillingStepByStep(TwoTasks):
    """Distilling step-by-step (Hsieh, Li, Yeh, Nakhost, Fujii, Ratner, Krishna, Lee and Pfister, ACL Findings 2023).

    The teacher answers by chain-of-thought prompting. The student learns "predict: question" → answer and "explain:
    question" → rationale, and is asked by the first prefix alone. The paper's loss is L_label + λ · L_rationale with
    λ = 1, its code's α · L_label + (1 − α) · L_rationale with α = 0.5. Ours is the second: half of the first at λ = 1,
    for which Adam's updates are the same; in general λ = (1 − α) / α.

    A rationale that leads to a wrong answer is kept by default, as in the paper's code, which filters nothing. Where
    gold answers are there a filter costs nothing, so why keep it? It is what the paper measured; the explanation task
    is never asked in inference, so a wrong rationale misleads the shared weights only; and dropping it loses what else
    it says about the question: a quarter of PaLM's on CommonsenseQA. Outcomes name the difference in
    `texts["source"]`: "chain of thought" alone, or "to another answer" or "without an answer", each counted in the
    summary. The
    filtered variant is `keep_wrong=False`, or `MTCoT(source="cot", setup="reasoning")`, which is the same but for its
    prefixes. With `labels="teacher"` and a gold answer it drops wrong labels with their rationales.

    The paper's and its code's: prefixes, loss, T5 v1.1 students, learning rate 5e-5, batch 64, 10,000 steps, 1024
    tokens of input and 256 of targets, exact match, PaLM's rationales (those of public data). For sums the code learns
    an equation and evaluates what the student writes as Python; here it is the number, and nothing is evaluated. Ours:
    prompts of a live teacher, which the recorded text does not need. The paper's scores with T5 are not verifiable
    here.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        choices_field: field of the records with the list of choices that a question offers; None if it has none.
        labels: what the answer task learns: "gold" answers, or the "teacher"'s (then records need no gold answer).
        keep_wrong: whether a rationale is kept whose answer is not the gold one, or missing.
        alpha: weight of the answer task, above 0 and below 1.
        answers_of_all: whether a record without a kept rationale teaches its gold answer (with `labels="gold"`).
        demonstrations: before the question, as in `MTCoT`.
        demonstration_count: how many of them; all by default.
        demonstration_choice: "first", or "drawn" by seed and record.
        rationale_tokens: most tokens of a rationale.
        answer_step: False for a text that ends in its answer; True asks for the answer apart, as recorded text needs it
            whose answer has a field of its own.
        student_kind: "decoder_only" (" ###" ends a prompt), or "encoder_decoder".
        inference_tokens: most tokens of a student's answer.
        seed: of drawn demonstrations.
        rationale_prompt: the teacher's template, as in `MTCoT`.
        answer_prompt: template of the separate answer, as in `MTCoT`.
        student_prompt: the student's; it may use `prefix`, `question`, `choices` and `record`.
    """

    def __init__(
        self,
        kind: AnswerKind = "text",
        choices: str = "ABCDE",
        choices_field: str | None = None,
        labels: Literal["gold", "teacher"] = "gold",
        keep_wrong: bool = True,
        alpha: float = 0.5,
        answers_of_all: bool = True,
        demonstrations: str | list[dict[str, Any]] | None = None,
        demonstration_count: int | None = None,
        demonstration_choice: Choice = "first",
        rationale_tokens: int = 256,
        answer_step: bool = False,
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 32,
        seed: int = 0,
        rationale_prompt: str = "mt_cot/chain.jinja",
        answer_prompt: str = "mt_cot/answer.jinja",
        student_prompt: str = "mt_cot/student.jinja",
    ) -> None:
        if labels not in ("gold", "teacher"):
            raise ConfigurationError(f"DistillingStepByStep: labels is gold or teacher, not {labels!r}")
        super().__init__(
            kind=kind,
            choices=choices,
            choices_field=choices_field,
            alpha=alpha,
            answers_of_all=answers_of_all,
            prefixes=("predict: ", "explain: "),
            demonstrations=demonstrations,
            demonstration_count=demonstration_count,
            demonstration_choice=demonstration_choice,
            rationale_tokens=rationale_tokens,
            answer_step=answer_step,
            student_kind=student_kind,
            inference_tokens=inference_tokens,
            seed=seed,
            rationale_prompt=rationale_prompt,
            answer_prompt=answer_prompt,
            student_prompt=student_prompt,
        )
        self.labels = labels
        self.keep_wrong = keep_wrong

    def asks(self, problem: Problem) -> bool:
        """If it has a gold answer, or needs none: where the teacher labels, and its labels are not filtered."""
        return super().asks(problem) or (self.labels == "teacher" and self.keep_wrong)

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """As Fine-tune-CoT, and then what it would drop for its answer is kept again."""
        found = yield from super().collect(problems)
        unknown = {problem.number for problem in problems if self.gold(problem) is None}
        return [self._judged(outcome, outcome.record in unknown) for outcome in found]

    def _judged(self, outcome: Outcome, unknown: bool) -> Outcome:
        source = CHAIN if unknown and outcome.reason == WRONG else _SOURCES.get(outcome.reason, CHAIN)
        outcome = replace(outcome, texts={"source": source, **outcome.texts})
        if not self.keep_wrong or outcome.reason not in _SOURCES or not outcome.texts.get("rationale"):
            return outcome
        lacks_label = self.labels == "teacher" and outcome.prediction is None
        return outcome if lacks_label else replace(outcome, reason=KEPT)

    def answer(self, problem: Problem, outcome: Outcome | None) -> str | None:
        """The gold answer, or the teacher's."""
        if self.labels == "gold":
            return super().answer(problem, outcome)
        return None if outcome is None else outcome.prediction

    def explanation(self, rationale: str, answer: str) -> str:
        """The rationale alone."""
        return rationale
