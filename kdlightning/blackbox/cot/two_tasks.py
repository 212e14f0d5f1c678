"""What methods share whose student learns to answer, and beside it to explain."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from kdlightning.blackbox.answers import AnswerKind, canonical_answer, extract_answer
from kdlightning.blackbox.base import Example, Outcome, Problem
from kdlightning.blackbox.cot.explanation import EXPLAINED
from kdlightning.blackbox.cot.fine_tune_cot import NEXT_QUESTION, FineTuneCoT
from kdlightning.blackbox.demonstrations import Choice, load_demonstrations
from kdlightning.blackbox.question_answering import StudentKind, choices_of
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError

ANSWER, EXPLANATION = "answer", "explanation"
CHAIN = "chain of thought"
CONCLUSION = "So the answer is"
_AROUND = " \t.\"'“”"
_LETTER = re.compile(r"\(\s*([A-Za-z])\s*\)|([A-Za-z])[.):]?(?=\s|$)")


class TwoTasks(FineTuneCoT):
    """Base of methods of two tasks with one student, told apart by the beginning of the prompt.

    Task "answer" learns the right answer, task "explanation" what `explanation` makes of the teacher's text; inference
    uses the first alone, so explanations cost nothing there. The teacher is asked and filtered as in Fine-tune-CoT, but
    by chain-of-thought prompting with demonstrations, and by one prompt instead of two.

    The options are those of `MTCoT`, which explains them.
    """

    stop: ClassVar[tuple[str, ...]] = (NEXT_QUESTION,)

    def __init__(
        self,
        *,
        kind: AnswerKind,
        choices: str,
        choices_field: str | None,
        alpha: float,
        answers_of_all: bool,
        prefixes: tuple[str, str],
        demonstrations: str | list[dict[str, Any]] | None,
        demonstration_count: int | None,
        demonstration_choice: Choice,
        rationale_tokens: int,
        answer_step: bool,
        student_kind: StudentKind,
        inference_tokens: int,
        seed: int,
        rationale_prompt: str,
        answer_prompt: str,
        student_prompt: str,
    ) -> None:
        name = type(self).__name__
        super().__init__(
            kind,
            choices,
            rationale_tokens=rationale_tokens,
            answer_step=answer_step,
            student_kind=student_kind,
            inference_tokens=inference_tokens,
            seed=seed,
            rationale_prompt=rationale_prompt,
            answer_prompt=answer_prompt,
        )
        if not 0 < alpha < 1:
            raise ConfigurationError(
                f"{name}: alpha is {alpha}; give a number between 0 and 1 (for answers alone there is AnswerOnly)"
            )
        if prefixes[0] == prefixes[1]:
            raise ConfigurationError(f"{name}: both tasks have the prefix {prefixes[0]!r}; nothing tells them apart")
        self.choices_field = choices_field
        self.tag_weights = {ANSWER: alpha, EXPLANATION: 1.0 - alpha}
        self.answers_of_all = answers_of_all
        self.prefixes = dict(zip((ANSWER, EXPLANATION), prefixes, strict=True))
        self.shown = load_demonstrations(
            demonstrations,
            EXPLAINED,
            owner=name,
            lists=("choices",),
            count=demonstration_count,
            choice=demonstration_choice,
            seed=seed,
        )
        self.student_prompt = student_prompt

    # -- the teacher -----------------------------------------------------------------------------------------------

    def template_values(self, problem: Problem) -> dict[str, Any]:
        """`question`, `choices`, `demonstrations` (of question, choices, rationale and answer) and `record`."""
        return {
            "question": problem.question.strip(),
            "choices": choices_of(problem, self.choices_field),
            "demonstrations": self.shown(problem),
            "record": problem.record,
        }

    def read_teacher(self, problem: Problem, text: str) -> str | None:
        """The teacher's answer; for a question with choices, the choice that it names or whose letter it gives."""
        found = super().read_teacher(problem, text)
        if found is None or self.kind != "text":
            return found
        return offered(found, choices_of(problem, self.choices_field))

    # -- the student -----------------------------------------------------------------------------------------------

    @abstractmethod
    def explanation(self, rationale: str, answer: str) -> str:
        """What the explanation task learns to write, without the end token."""

    def answer(self, problem: Problem, outcome: Outcome | None) -> str | None:
        """What the answer task learns from an outcome, or from the record alone: the gold answer."""
        return self.gold(problem)

    def prompt(self, problem: Problem) -> str:
        """`{answer prefix}{question} {choices} ###`, without ` ###` for encoder–decoders."""
        return self.task_prompt(problem, ANSWER)

    def task_prompt(self, problem: Problem, tag: str) -> str:
        """A record's prompt in one of the two tasks."""
        text = render(
            self.student_prompt,
            prefix=self.prefixes[tag],
            question=problem.question.strip(),
            choices=choices_of(problem, self.choices_field),
            record=problem.record,
        )
        return text if self.encoder_decoder else f"{text} ###"

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """Both tasks for each kept explanation; of a record without, the answer where there is one."""
        made: list[Example] = []
        for outcome in outcomes:
            answer = self.answer(problem, outcome)
            if not outcome.kept or answer is None:
                continue
            explanation = self.explanation(outcome.texts["rationale"], answer)
            made += [self._example(problem, ANSWER, answer), self._example(problem, EXPLANATION, explanation)]
        alone = self.answer(problem, None) if self.answers_of_all and not made else None
        return {"student": made if alone is None else [self._example(problem, ANSWER, alone)]}

    def _example(self, problem: Problem, tag: str, label: str) -> Example:
        return Example(problem.number, self.task_prompt(problem, tag), self.label(label), tag)

    def read(self, text: str) -> str | None:
        """The answer that the student wrote; an answer that is text is its whole first line."""
        if self.kind == "text":
            return text.strip().partition("\n")[0].strip() or None
        return extract_answer(f"The answer is {text}", self.kind, self.choices)


def offered(answer: str, choices: Sequence[str]) -> str:
    """The choice that an answer means: by its words, or by its letter ("(b)", "(b) bridge", "B."); else the answer.

    Args:
        answer: what stood behind "the answer is", perhaps with a full stop and another sentence.
        choices: what the question offers, the first of them being (a).
    """
    by_words = {canonical_answer(choice, "text"): choice for choice in choices}
    plain = answer.strip(_AROUND)
    for text in (plain, plain.partition(". ")[0]):
        letter = _LETTER.match(text)
        rest = text if letter is None else text[letter.end() :]
        for words in (text, rest):
            named = by_words.get(canonical_answer(words.strip(_AROUND), "text"))
            if named is not None:
                return named
        place = -1 if letter is None else ord((letter[1] or letter[2]).lower()) - ord("a")
        if not rest.strip() and 0 <= place < len(choices):
            return choices[place]
    return plain
