"""MT-CoT: a student learns to answer and to explain, from a large teacher's explanations of three sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from kdlightning.blackbox.answers import AnswerKind
from kdlightning.blackbox.base import KEPT, NO_TEXT, Outcome, Problem, Round, Rounds
from kdlightning.blackbox.cot.explanation import ExplanationPrompt
from kdlightning.blackbox.cot.fine_tune_cot import EMPTY
from kdlightning.blackbox.cot.two_tasks import CHAIN, CONCLUSION, TwoTasks
from kdlightning.blackbox.demonstrations import Choice
from kdlightning.blackbox.question_answering import NO_GOLD, StudentKind
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Origin, Request
from kdlightning.generation.records import field_of

Source = Literal["cot", "rationalization", "both"]
Setup = Literal["reasoning", "rationale", "cot"]
RATIONALIZATION, HUMAN = "rationalization", "human explanation"
NO_HUMAN = "the record has no human explanation"
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "cot": ("cot",),
    "rationalization": ("rationalization",),
    "both": ("cot", "rationalization"),
}
_SETUPS: Mapping[str, str] = {
    "reasoning": "{rationale}",
    "rationale": "The answer is {answer}. {rationale}",
    "cot": f"{{rationale}} {CONCLUSION} {{answer}}.",
}


class MTCoT(TwoTasks):
    """MT-CoT (Li, Chen, Shen, Chen, Zhang, Li, Wang, Qian, Peng, Mao, Chen and Yan, 2022, arXiv:2210.06726).

    Explanations come from one of three sources:

    * `source="cot"`, chain-of-thought prompting (COTE): demonstrations that reason before they answer, then the
      question; kept if the teacher's answer is the gold one;
    * `source="rationalization"` (RP): the prompt holds the gold answer, and the teacher says why; kept unless empty;
    * `source="both"` (CROP): the chain of thought where its answer is right; every other record is asked again, by
      rationalization.

    A student learns two tasks, told apart by a prefix of the prompt, with loss α · answer + (1 − α) · explanation, each
    the mean over its own tokens in a batch. Task "answer" is the right answer, and all that inference uses, greedily.
    Task "explanation" depends on the set-up:

    * `setup="reasoning"`, multi-task learning with reasoning (MT-Re): the explanation alone;
    * `setup="rationale"`, multi-task learning with rationalization (MT-Ra): the answer, then the explanation;
    * `setup="cot"`, multi-task learning with chain of thought (MT-CoT): the explanation, then "So the answer is X."

    Each outcome names the source of its explanation in `texts["source"]`: "chain of thought", "rationalization" or
    "human explanation"; the summary counts them. In "both", sample 0 of a record is its chain of thought, and sample 1
    its rationalization, if that was needed.

    The paper's: sources, filter, set-ups, loss; teacher text-davinci-002, students T5. There is no public code. From
    memory and not verifiable here: 7 demonstrations for CommonsenseQA and 6 for StrategyQA, α = 0.5 as the usual one of
    0.1 to 0.9. Ours: the wording of prompts, prefixes and labels; a bank of 7 demonstrations for questions with choices
    (`mt_cot/demonstrations.jsonl`), not used unless named; a record without a kept explanation still teaches its
    answer, so that the student sees as many answers as one without a teacher; human explanations.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        choices_field: field of the records with the list of choices that a question offers, for prompts of teacher and
            student; None if it has none. With `kind="text"` the gold answer is one of them.
        source: "cot", "rationalization" or "both".
        setup: "reasoning", "rationale" or "cot".
        alpha: weight of the answer task, above 0 and below 1.
        human_field: field of the records with a human explanation, which takes the place of the teacher's
            rationalization; the teacher is then not asked for any.
        answers_of_all: whether a record without a kept explanation teaches its gold answer; False leaves it out.
        demonstrations: before the question, a file or in Python a list, with the fields question, rationale, answer,
            and choices where there are any; None shows none.
        demonstration_count: how many of them; all by default.
        demonstration_choice: "first", or "drawn" by seed and record.
        rationale_tokens: most tokens of an explanation.
        answer_step: False for a text that ends in its answer ("… So the answer is X."); True asks for the answer apart,
            as recorded text needs it whose answer has a field of its own.
        answer_prefix: beginning of the answer task's prompts.
        explanation_prefix: beginning of the explanation task's.
        student_kind: "decoder_only" (" ###" ends a prompt), or "encoder_decoder".
        inference_tokens: most tokens of a student's answer.
        seed: of drawn demonstrations.
        rationale_prompt: template of chain-of-thought prompting; it may use `question`, `choices`, `demonstrations` and
            `record`.
        answer_prompt: template of the separate answer; it may use `prompt` and `rationale` too.
        rationalization_prompt: template of rationalization; it may use `answer`, and what `rationale_prompt` may.
        student_prompt: the student's; it may use `prefix`, `question`, `choices` and `record`.
    """

    def __init__(
        self,
        kind: AnswerKind = "text",
        choices: str = "ABCDE",
        choices_field: str | None = None,
        source: Source = "both",
        setup: Setup = "cot",
        alpha: float = 0.5,
        human_field: str | None = None,
        answers_of_all: bool = True,
        demonstrations: str | list[dict[str, Any]] | None = None,
        demonstration_count: int | None = None,
        demonstration_choice: Choice = "first",
        rationale_tokens: int = 128,
        answer_step: bool = False,
        answer_prefix: str = "answer: ",
        explanation_prefix: str = "explain: ",
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 32,
        seed: int = 0,
        rationale_prompt: str = "mt_cot/chain.jinja",
        answer_prompt: str = "mt_cot/answer.jinja",
        rationalization_prompt: str = "mt_cot/rationalization.jinja",
        student_prompt: str = "mt_cot/student.jinja",
    ) -> None:
        _check("source", source, get_args(Source))
        _check("setup", setup, get_args(Setup))
        if human_field is not None and source == "cot":
            raise ConfigurationError("MTCoT: human_field is of source rationalization or both; leave it out with cot")
        super().__init__(
            kind=kind,
            choices=choices,
            choices_field=choices_field,
            alpha=alpha,
            answers_of_all=answers_of_all,
            prefixes=(answer_prefix, explanation_prefix),
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
        self.source = source
        self.setup = setup
        self.human_field = human_field
        self.explain = ExplanationPrompt(rationalization_prompt, choices_field, self.shown)

    # -- the teacher -----------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """Chains of thought, then rationalizations of what is still unexplained, as far as the source has them."""
        outcomes: list[Outcome] = []
        open_ = list(problems)
        if self.source != "rationalization":
            found = yield from super().collect(problems)
            outcomes = [replace(each, texts={"source": CHAIN, **each.texts}) for each in found]
            settled = {each.record for each in found if each.kept or each.reason == NO_GOLD}
            open_ = [problem for problem in problems if problem.number not in settled]
        if self.source != "cot":
            outcomes += yield from self._rationalizations(open_, sample=int(self.source == "both"))
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def _rationalizations(self, problems: Sequence[Problem], sample: int) -> Rounds[list[Outcome]]:
        asked = [problem for problem in problems if self.asks(problem)]
        without = [Outcome(problem.number, sample, NO_GOLD) for problem in problems if not self.asks(problem)]
        if self.human_field is not None:
            return without + [self._human(problem, sample) for problem in asked]
        answers = yield Round("Rationalizations", [self._rationalization_request(problem) for problem in asked])
        read = [self._read_rationalization(*row, sample) for row in zip(asked, answers, strict=True)]
        return without + read

    def _rationalization_request(self, problem: Problem) -> Request:
        prompt = self.explain(problem, str(self.gold(problem)))
        origin = Origin(problem.question, "rationalization")
        return Request(prompt, sampling=self.rationale_sampling, stop=self.stop, origin=origin)

    def _read_rationalization(self, problem: Problem, answer: Answer, sample: int) -> Outcome:
        if 0 not in answer.completions:
            detail = answer.failures.get(0, "")
            return Outcome(problem.number, sample, NO_TEXT, {"source": RATIONALIZATION}, detail=detail)
        return self._explained(problem, sample, RATIONALIZATION, answer.completions[0].text)

    def _human(self, problem: Problem, sample: int) -> Outcome:
        text = field_of(problem.record, str(self.human_field))
        if text is None or not str(text).strip():
            return Outcome(problem.number, sample, NO_HUMAN, {"source": HUMAN})
        return self._explained(problem, sample, HUMAN, str(text))

    def _explained(self, problem: Problem, sample: int, source: str, text: str) -> Outcome:
        rationale = text.strip()
        texts = {"source": source, "rationale": rationale}
        return Outcome(problem.number, sample, KEPT if rationale else EMPTY, texts, self.gold(problem))

    # -- the student -----------------------------------------------------------------------------------------------

    def explanation(self, rationale: str, answer: str) -> str:
        """By the set-up: explanation, answer and explanation, or explanation and answer."""
        return _SETUPS[self.setup].format(rationale=rationale, answer=answer)


def _check(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        *most, last = known
        raise ConfigurationError(
            f"MTCoT: {option} is {', '.join(most)} or {last}, not {value!r}{nearest(str(value), known)}"
        )
