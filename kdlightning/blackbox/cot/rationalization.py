"""A teacher made on the spot: it learns to say why an answer that it is given is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdlightning.blackbox.answers import AnswerKind, canonical_answer, extract_answer
from kdlightning.blackbox.base import Example, Outcome, Prediction, Problem, Round, Rounds
from kdlightning.blackbox.cot.explanation import ExplanationPrompt
from kdlightning.blackbox.cot.fine_tune_cot import NO_ANSWER, FineTuneCoT
from kdlightning.blackbox.question_answering import StudentKind
from kdlightning.generation.base import Request, Sampling


class Rationalization(FineTuneCoT):
    """Learns "Q: … A: The answer is X." → " rationale" from records with rationales and the answers they lead to.

    It makes a small local teacher for methods that need one which explains a given answer and gives its distributions
    (`SCOTT`). Ours, not a published method. X is what the rationale itself led to, right or wrong: of a large model's
    recorded text no rationale is dropped, so that the teacher also learns to explain wrong answers, as counterfactual
    rationales need it.

    Inference gives it the right answer; a rationale counts as one if it names that answer, and `acc` is their share.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        choices_field: field of the records with the list of choices that a question offers; None if it has none.
        rationale_tokens: most tokens of a rationale, recorded or written.
        student_kind: "decoder_only", or "encoder_decoder".
        rationale_prompt: template; it may use `question`, `choices`, `answer`, `demonstrations` (none) and `record`.
    """

    def __init__(
        self,
        kind: AnswerKind = "text",
        choices: str = "ABCDE",
        choices_field: str | None = None,
        rationale_tokens: int = 128,
        student_kind: StudentKind = "decoder_only",
        rationale_prompt: str = "scott/rationale.jinja",
    ) -> None:
        super().__init__(kind, choices, rationale_tokens=rationale_tokens, student_kind=student_kind)
        self.explain = ExplanationPrompt(rationale_prompt, choices_field)
        self.inference_sampling = Sampling(rationale_tokens)

    def _judge(self, problem: Problem, outcome: Outcome, text: str) -> Outcome:
        prediction = extract_answer(text, self.kind, self.choices)
        return replace(outcome, reason=NO_ANSWER) if prediction is None else replace(outcome, prediction=prediction)

    def prompt(self, problem: Problem) -> str:
        """Asks why the right answer is right."""
        return self.explain(problem, self.gold(problem) or "")

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The rationale, for the answer that it led to."""
        return {
            "student": [
                Example(
                    problem.number,
                    self.explain(problem, str(outcome.prediction)),
                    self.label(" ".join(outcome.texts["rationale"].split())),
                )
                for outcome in outcomes
                if outcome.kept
            ]
        }

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """Greedy; each rationale is to name the answer that it was asked to explain."""
        requests = [
            Request(self.prompt(problem), sampling=self.inference_sampling, stop=("\n",)) for problem in problems
        ]
        answers = yield Round("Inference", requests, role="student")
        return [self._named(problem, "".join(answer.texts)) for problem, answer in zip(problems, answers, strict=True)]

    def _named(self, problem: Problem, text: str) -> Prediction:
        gold = self.gold(problem)
        names = gold is not None and f" {_plain(gold)} " in f" {_plain(text)} "
        return Prediction(problem.number, problem.question, text, gold if names else None, gold, names)


def _plain(text: str) -> str:
    """Words alone, so that an answer is found as whole words and not within others."""
    letters = "".join(each if each.isalnum() else " " for each in text)
    return canonical_answer(letters, "text") or ""
