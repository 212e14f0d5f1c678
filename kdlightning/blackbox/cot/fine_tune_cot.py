"""Fine-tune-CoT: a student learns to reason as a large teacher was seen to reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from kdlightning.blackbox.answers import AnswerKind, answers_match, extract_answer, split_at_trigger
from kdlightning.blackbox.base import KEPT, NO_TEXT, Example, Outcome, Problem, Round, Rounds
from kdlightning.blackbox.question_answering import NO_GOLD, SEPARATOR, QuestionAnswering, StudentKind
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Origin, Request, Sampling

EMPTY = "the rationale is empty"
NO_ANSWER = "no answer in the teacher's text"
WRONG = "the teacher's answer is wrong"
NEXT_QUESTION = "\nQ:"


class FineTuneCoT(QuestionAnswering):
    """Fine-tune-CoT (Ho, Schmid and Yun, ACL 2023).

    The teacher is asked twice, without demonstrations: "Q: … A: Let's think step by step." for a rationale, and this
    with the rationale and "Therefore, the answer is" for the answer. A sample is kept if its answer is the gold one;
    the rationale itself is not checked. Diverse reasoning draws several rationales for each question. The student
    learns "{question} ###" → " {rationale} --> {answer}", loss on the latter alone, and answers greedily.

    The paper's: prompts, filter, formats, 128 tokens a rationale, temperature 0 for one sample and 0.7 for several,
    1024 tokens of inference, learning rate 3e-4, batch 8, 20 epochs; it reports the best epoch *on test*, we never do.
    Ours: answers are read by `extract_answer` in both places, and the label's answer has the form that it gives (`42`
    for `42.0`, which public code counts as wrong on some sets).

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        samples: rationales a question (D in the paper).
        temperature: of the rationales; None is the paper's.
        rationale_tokens: most tokens of a rationale.
        answer_tokens: most tokens of the second step.
        answer_step: False for teachers whose text already ends in its answer ("…#### 72"); the rationale is then what
            stands before it.
        student_kind: "decoder_only", or "encoder_decoder" (input without " ###", label without its leading space).
        inference_tokens: most tokens of a student's answer.
        seed: of the teacher's draws.
        rationale_prompt: template of the first step; it may use `question` and `record`.
        answer_prompt: template of the second; it may use `prompt`, `rationale`, `question` and `record`.
    """

    stop: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        kind: AnswerKind = "number",
        choices: str = "ABCDE",
        samples: int = 1,
        temperature: float | None = None,
        rationale_tokens: int = 128,
        answer_tokens: int = 32,
        answer_step: bool = True,
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 1024,
        seed: int = 0,
        rationale_prompt: str = "fine_tune_cot/rationale.jinja",
        answer_prompt: str = "fine_tune_cot/answer.jinja",
    ) -> None:
        super().__init__(kind, choices, student_kind, inference_tokens)
        if samples < 1:
            raise ConfigurationError(f"FineTuneCoT: samples is {samples}; give at least 1")
        self.samples = samples
        self.answer_step = answer_step
        heat = temperature if temperature is not None else 0.7 if samples > 1 else 0.0
        self.rationale_sampling = Sampling(rationale_tokens, heat, seed=seed)
        self.answer_sampling = Sampling(answer_tokens)
        self.rationale_prompt = rationale_prompt
        self.answer_prompt = answer_prompt

    # -- the teacher -----------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round for rationales, one for answers; records without a gold answer are not asked about."""
        asked = [problem for problem in problems if self.asks(problem)]
        first = [self._rationale_request(problem) for problem in asked]
        answers = yield Round("Rationales", first)
        outcomes = [
            Outcome(problem.number, sample, NO_GOLD)
            for problem in problems
            if not self.asks(problem)
            for sample in range(self.samples)
        ]
        open_: list[tuple[Problem, Outcome]] = []
        for problem, answer in zip(asked, answers, strict=True):
            for outcome in self._read_rationales(problem, answer):
                if outcome.kept and self.answer_step:
                    open_.append((problem, outcome))
                else:
                    outcomes.append(outcome)
        if self.answer_step:
            second = [self._answer_request(problem, outcome) for problem, outcome in open_]
            answers = yield Round("Answers", second)
            for (problem, outcome), answer in zip(open_, answers, strict=True):
                outcomes.append(self._read_answer(problem, outcome, answer))
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def asks(self, problem: Problem) -> bool:
        """Whether the teacher is asked about a record: if it has a gold answer."""
        return self.gold(problem) is not None

    def template_values(self, problem: Problem) -> dict[str, Any]:
        """What the teacher's templates may use of a record."""
        return {"question": problem.question, "record": problem.record}

    def _rationale_request(self, problem: Problem) -> Request:
        prompt = render(self.rationale_prompt, **self.template_values(problem))
        origin = Origin(problem.question, "rationale")
        return Request(prompt, samples=self.samples, sampling=self.rationale_sampling, stop=self.stop, origin=origin)

    def _answer_request(self, problem: Problem, outcome: Outcome) -> Request:
        rationale, values = outcome.texts["rationale"], self.template_values(problem)
        asked = render(self.rationale_prompt, **values)
        prompt = render(self.answer_prompt, prompt=asked, rationale=rationale, **values)
        origin = Origin(problem.question, "answer", {"rationale": rationale})
        return Request(prompt, sampling=self.answer_sampling, stop=self.stop, origin=origin)

    def _read_rationales(self, problem: Problem, answer: Answer) -> list[Outcome]:
        outcomes = []
        for sample in range(self.samples):
            completion = answer.completions.get(sample)
            if completion is None:
                outcomes.append(Outcome(problem.number, sample, NO_TEXT, detail=answer.failures.get(sample, "")))
                continue
            text = completion.text.strip()
            rationale = text if self.answer_step else split_at_trigger(text)[0]
            outcome = Outcome(problem.number, sample, KEPT if rationale else EMPTY, {"rationale": rationale})
            outcomes.append(outcome if self.answer_step or not rationale else self._judge(problem, outcome, text))
        return outcomes

    def _read_answer(self, problem: Problem, outcome: Outcome, answer: Answer) -> Outcome:
        if 0 not in answer.completions:
            return replace(outcome, reason=NO_TEXT, detail=answer.failures.get(0, ""))
        text = answer.completions[0].text
        outcome = replace(outcome, texts={**outcome.texts, "answer": text.strip()})
        # The prompt ends in the trigger, so what follows it is what a reader would find after one. A question that the
        # teacher goes on with has an answer of its own.
        return self._judge(problem, outcome, f"The answer is {text.partition(NEXT_QUESTION)[0]}")

    def _judge(self, problem: Problem, outcome: Outcome, text: str) -> Outcome:
        prediction = self.read_teacher(problem, text)
        if prediction is None:
            return replace(outcome, reason=NO_ANSWER)
        right = answers_match(prediction, problem.gold, self.kind)
        return replace(outcome, prediction=prediction, reason=KEPT if right else WRONG)

    def read_teacher(self, problem: Problem, text: str) -> str | None:
        """The teacher's answer in its text, or None."""
        return extract_answer(text, self.kind, self.choices)

    # -- the student -----------------------------------------------------------------------------------------------

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """`{rationale} --> {answer}` for each kept sample."""
        answer = self.gold(problem)
        return {
            "student": [
                Example(
                    problem.number,
                    self.prompt(problem),
                    self.label(f"{outcome.texts['rationale']} {SEPARATOR} {answer}"),
                )
                for outcome in outcomes
                if outcome.kept
            ]
        }
