"""What methods share whose student is given a question and judged by the answer that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from kdlightning.blackbox.answers import AnswerKind, answers_match, canonical_answer, extract_answer
from kdlightning.blackbox.base import BlackBoxMethod, Prediction, Problem, Round, Rounds, with_gold
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.records import field_of

SEPARATOR = "-->"
NO_GOLD = "the record has no gold answer"
StudentKind = Literal["decoder_only", "encoder_decoder"]


class QuestionAnswering(BlackBoxMethod):
    """Base of methods on questions with one right answer; its students answer greedily.

    The student is given "{question} ###" (the bare question for encoder–decoders, as Ho et al., ACL 2023, have it), and
    its answer is what follows the last `-->`, or is found as `extract_answer` finds it in any text.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        student_kind: "decoder_only", or "encoder_decoder" (input without " ###", label without its leading space).
        inference_tokens: most tokens of a student's answer.
    """

    def __init__(self, kind: AnswerKind, choices: str, student_kind: StudentKind, inference_tokens: int) -> None:
        extract_answer("", kind, choices)  # refuses what is no kind and no choices
        if student_kind not in ("decoder_only", "encoder_decoder"):
            raise ConfigurationError(f"student_kind is decoder_only or encoder_decoder, not {student_kind!r}")
        self.kind = kind
        self.choices = choices
        self.encoder_decoder = student_kind == "encoder_decoder"
        self.inference_sampling = Sampling(inference_tokens)

    def prompt(self, problem: Problem) -> str:
        """`{question} ###`, or the bare question for encoder–decoders."""
        question = problem.question.strip()
        return question if self.encoder_decoder else f"{question} ###"

    def label(self, text: str) -> str:
        """A label as the student writes it behind its prompt."""
        return text if self.encoder_decoder else f" {text}"

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """Greedy; the answer is what follows the last `-->`, or is found as in any text."""
        requests = [Request(self.prompt(problem), sampling=self.inference_sampling) for problem in problems]
        answers = yield Round("Inference", requests, role="student")
        predictions = []
        for problem, answer in zip(problems, answers, strict=True):
            text = "".join(answer.texts)
            found = self.read(text)
            right = answers_match(found, problem.gold, self.kind)
            predictions.append(Prediction(problem.number, problem.question, text, found, self.gold(problem), right))
        return predictions

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`acc` over the records that have a gold answer; nothing if none has."""
        return super().metrics(with_gold(predictions))

    def read(self, text: str) -> str | None:
        """The answer in what the student wrote, or None."""
        return extract_answer(text, self.kind, self.choices, triggers=[SEPARATOR])

    def read_gold(self, value: Any) -> str | None:
        """As text; true and false are yes and no where that is asked."""
        if self.kind == "yes_no" and isinstance(value, bool):
            return "yes" if value else "no"
        return super().read_gold(value)

    def gold(self, problem: Problem) -> str | None:
        """The right answer in canonical form, or None."""
        if problem.gold is None or self.kind == "text":
            return problem.gold if problem.gold is None else problem.gold.strip()
        return canonical_answer(problem.gold, self.kind)


def choices_of(problem: Problem, field: str | None) -> list[str]:
    """The choices that a question offers, from the field that lists them; none without a field.

    Raises:
        ConfigurationError: the field is missing, or holds no list.
    """
    if field is None:
        return []
    choices = field_of(problem.record, field)
    if not isinstance(choices, (list, tuple)):
        raise ConfigurationError(
            f"record {problem.number}: choices_field {field!r} holds a {type(choices).__name__}, "
            "and choices are a list of texts"
        )
    return [str(choice).strip() for choice in choices]
