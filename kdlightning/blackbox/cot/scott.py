"""SCOTT: a student whose answers follow from its rationales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from kdlightning.blackbox.answers import AnswerKind, answers_match, extract_answer
from kdlightning.blackbox.base import KEPT, NO_TEXT, Example, Outcome, Prediction, Problem, Round, Rounds, with_gold
from kdlightning.blackbox.cot.explanation import EXPLAINED, ExplanationPrompt
from kdlightning.blackbox.cot.faithfulness import FaithfulPrediction, faithfulness_metrics, fed_rationales
from kdlightning.blackbox.cot.wrong_answers import wrong_answer
from kdlightning.blackbox.demonstrations import load_demonstrations
from kdlightning.blackbox.question_answering import NO_GOLD, QuestionAnswering, StudentKind
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Capability, Contrast, Origin, Request, Sampling
from kdlightning.generation.records import field_of
from kdlightning.schedules import Weight

FACTUAL, COUNTERFACTUAL = "factual", "counterfactual"
CONCLUSION = "So the answer is"
EMPTY = "the rationale is empty"
NO_WRONG = "there is no wrong answer to tell the right one from"


@dataclass(frozen=True)
class _Wanted:
    """A rationale to be asked for: of which record, as which of its samples, for which answer, against which."""

    problem: Problem
    sample: int
    answer: str
    against: str


class SCOTT(QuestionAnswering):
    """SCOTT (Wang, Wang, Li, Gao, Yin and Ren, ACL 2023).

    The teacher explains a given answer: "Q: … A: The answer is X." is continued to the end of the line, greedily, by
    tokens that X makes more plausible: each is the argmax of log P(t|X) + plausibility · (log P(t|X) − log P(t|X')),
    where X' is another answer or none; the text ends where log P(t|X) alone would end it. So it needs a teacher that
    gives whole distributions, a local one. For each question it explains the right answer, against a wrong one, and a
    wrong answer, against the right one. The student learns

    * factual: "[factual] question choices" → "[factual] rationale So the answer is X", loss on every token;
    * counterfactual: "[counterfactual] …" → the same with the wrong answer and its rationale, which the student is
      fed: loss on the answer alone, which the student can know from the rationale only.

    Their weights are 0.5 each. It answers greedily, made to begin with "[factual]". Beside `acc` the metrics are those
    of feeding it a rationale and "So the answer is": `perturbed_acc` with half the words of its own rationale replaced,
    and where `oracle_field` names rationales of the test records `oracle_acc` and `perturbed_oracle_acc`. `drop` and
    `oracle_drop` are what replacing words costs: much for a student that heeds its rationales. The paper's LAS needs a
    simulator, a further trained model, and is not there; nor are the refined rationales of its last experiment.

    The paper's and its code's: prompts, rule of decoding (their factor of 0.5 before log P(t|X') is plausibility 1),
    128 tokens, texts of the student, weights, batch 16, 10 epochs, learning rate 3e-5 for T5-3B, seven demonstrations.
    Ours: words and not tokens are replaced, by words of a fixed list, since a method knows no tokenizer; oracle
    rationales are the records' own, where the paper asks its teacher about test questions, and `perturbed_oracle_acc`
    is an addition; the wrong answer is drawn from seed and question; questions without choices, which the paper has
    not, take other records' answers as wrong ones; choices stand behind a line break, not the characters "\\n"; a
    decoder-only student's prompt ends in " ###"; no early stopping, and no demonstrations by default, for a teacher
    that was trained on this very format (`Rationalization`). Stopping and the texts follow the public code where the
    paper's text was not at hand; its scores with GPT-NeoX-20B are not verifiable here.

    Args:
        kind: what answers are.
        choices: letters of `kind="choice"`.
        choices_field: field of the records with the list of choices that a question offers; None if it has none.
        plausibility: weight of the growth in plausibility; 0 decodes greedily from the first context alone.
        perturbation: what a right answer's rationale is told from: "wrong", another answer, or "empty", none.
        counterfactual_weight: weight of the counterfactual loss, and 1 minus it of the factual one; 0 asks for no
            counterfactual rationales.
        rationale_tokens: most tokens of a rationale.
        demonstrations: records before the question, a file or in Python a list, with the fields question, answer,
            rationale, and choices or none.
        student_kind: "decoder_only", or "encoder_decoder" (input without " ###").
        inference_tokens: most tokens of a student's rationale and answer.
        answer_tokens: most tokens of its answer to a rationale that it is fed.
        faithfulness: whether inference also feeds rationales.
        oracle_field: field of the records with a rationale for the right answer.
        oracle_answer_field: field of the answer that this rationale led to; where it is another, nothing is fed.
        perturbed_share: share of words that are replaced.
        seed: of wrong answers and of replaced words.
        rationale_prompt: the teacher's template; it may use `question`, `choices`, `answer`, `demonstrations` and
            `record`.
        student_prompt: the student's; it may use `tag`, `question`, `choices` and `record`.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({"text", "logits"})

    def __init__(
        self,
        kind: AnswerKind = "text",
        choices: str = "ABCDE",
        choices_field: str | None = None,
        plausibility: float = 1.0,
        perturbation: Literal["wrong", "empty"] = "wrong",
        counterfactual_weight: float = 0.5,
        rationale_tokens: int = 128,
        demonstrations: str | list[dict[str, Any]] | None = None,
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 128,
        answer_tokens: int = 16,
        faithfulness: bool = True,
        oracle_field: str | None = None,
        oracle_answer_field: str | None = None,
        perturbed_share: float = 0.5,
        seed: int = 0,
        rationale_prompt: str = "scott/rationale.jinja",
        student_prompt: str = "scott/student.jinja",
    ) -> None:
        super().__init__(kind, choices, student_kind, inference_tokens)
        if plausibility < 0:
            raise ConfigurationError(f"SCOTT: plausibility is {plausibility}; give 0 or more, 1 is the paper's")
        if perturbation not in ("wrong", "empty"):
            raise ConfigurationError(f"SCOTT: perturbation is wrong or empty, not {perturbation!r}")
        if not 0 <= counterfactual_weight < 1:
            raise ConfigurationError(
                f"SCOTT: counterfactual_weight is {counterfactual_weight}; give 0 (factual alone) or more, below 1"
            )
        if not 0 <= perturbed_share <= 1:
            raise ConfigurationError(f"SCOTT: perturbed_share is {perturbed_share}; give 0 to 1")
        shown = load_demonstrations(demonstrations, EXPLAINED, owner="SCOTT", lists=("choices",))
        self.explain = ExplanationPrompt(rationale_prompt, choices_field, shown)
        self.plausibility = plausibility
        self.perturbation = perturbation
        weights: dict[str, Weight] = {FACTUAL: 1.0 - counterfactual_weight, COUNTERFACTUAL: counterfactual_weight}
        self.tag_weights = {tag: weight for tag, weight in weights.items() if weight}
        self.rationale_sampling = Sampling(rationale_tokens)
        self.answer_sampling = Sampling(answer_tokens)
        self.faithfulness = faithfulness
        self.oracle_field = oracle_field
        self.oracle_answer_field = oracle_answer_field
        self.perturbed_share = perturbed_share
        self.seed = seed
        self.student_prompt = student_prompt

    # -- the teacher -----------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round: sample 0 of a record is the rationale of its right answer, sample 1 that of a wrong one."""
        golds = [gold for gold in map(self.gold, problems) if gold is not None]
        found = [each for problem in problems for each in self._wanted(problem, golds)]
        wanted = [each for each in found if isinstance(each, _Wanted)]
        answers = yield Round("Rationales", [self._request(each) for each in wanted])
        outcomes = [each for each in found if isinstance(each, Outcome)]
        outcomes += [_outcome(each, answer) for each, answer in zip(wanted, answers, strict=True)]
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def _wanted(self, problem: Problem, golds: Sequence[str]) -> Iterator[_Wanted | Outcome]:
        gold = self.gold(problem)
        for sample, tag in enumerate(self.tag_weights):
            if gold is None:
                yield Outcome(problem.number, sample, NO_GOLD)
                continue
            wrong = wrong_answer(self._candidates(problem, golds), gold, tag, problem.question, self.seed)
            answer, against = (gold, wrong) if tag == FACTUAL else (wrong, gold)
            against = "" if self.perturbation == "empty" else against
            if answer is None or against is None:
                yield Outcome(problem.number, sample, NO_WRONG)
            else:
                yield _Wanted(problem, sample, answer, against)

    def _candidates(self, problem: Problem, golds: Sequence[str]) -> Sequence[str]:
        """Answers among which the wrong ones are."""
        offered = self.explain.choices(problem)
        if self.kind == "yes_no":
            return ("yes", "no")
        if self.kind == "choice":
            return list(self.choices.upper()[: len(offered) or None])
        return offered or golds

    def _request(self, wanted: _Wanted) -> Request:
        contrast = None
        if self.plausibility:
            contrast = Contrast(self.explain(wanted.problem, wanted.against), self.plausibility)
        return Request(
            self.explain(wanted.problem, wanted.answer),
            sampling=self.rationale_sampling,
            stop=("\n",),
            contrast=contrast,
            origin=Origin(wanted.problem.question, "rationale", {"given": wanted.answer}),
        )

    # -- the student -----------------------------------------------------------------------------------------------

    def prompt(self, problem: Problem) -> str:
        """`[factual] {question} {choices} ###`, without ` ###` for encoder–decoders."""
        return self._asked(problem, FACTUAL)

    def _asked(self, problem: Problem, tag: str) -> str:
        text = render(
            self.student_prompt,
            tag=tag,
            question=problem.question.strip(),
            choices=self.explain.choices(problem),
            record=problem.record,
        )
        return text if self.encoder_decoder else f"{text} ###"

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The whole text of a factual rationale; of a counterfactual one the answer, behind the rest."""
        return {"student": [self._example(problem, outcome) for outcome in outcomes if outcome.kept]}

    def _example(self, problem: Problem, outcome: Outcome) -> Example:
        tag = list(self.tag_weights)[outcome.sample]
        prompt, given = self._asked(problem, tag), self._given(tag, outcome.texts["rationale"])
        answer = f" {outcome.prediction}"
        if tag == FACTUAL:
            return Example(problem.number, prompt, given + answer, tag)
        return Example(problem.number, prompt, answer, tag, given)

    def _given(self, tag: str, rationale: str) -> str:
        """What a student is fed of its own text, up to the answer."""
        return self.label(" ".join(filter(None, [f"[{tag}]", rationale, CONCLUSION])))

    # -- inference -------------------------------------------------------------------------------------------------

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """Greedy, from "[factual]" on; then, from rationales that are fed, the answer alone."""
        start = self.label(f"[{FACTUAL}]")
        requests = [self._ask(problem, self.inference_sampling, start) for problem in problems]
        answers = yield Round("Inference", requests, role="student")
        texts = ["".join(answer.texts) for answer in answers]
        fed: list[dict[str, bool]] = [{} for _ in problems]
        if self.faithfulness:
            rows = [
                (place, name, self._ask(problem, self.answer_sampling, self._given(FACTUAL, rationale)))
                for place, problem in enumerate(problems)
                for name, rationale in self._fed_rationales(problem, texts[place]).items()
            ]
            answers = yield Round("Rationales fed", [request for _, _, request in rows], role="student")
            for (place, name, _), answer in zip(rows, answers, strict=True):
                found = extract_answer(f"{CONCLUSION} {''.join(answer.texts)}", self.kind, self.choices)
                fed[place][name] = answers_match(found, problems[place].gold, self.kind)
        return [self._predicted(*row) for row in zip(problems, texts, fed, strict=True)]

    def _ask(self, problem: Problem, sampling: Sampling, start: str) -> Request:
        return Request(self.prompt(problem), sampling=sampling, answer_start=start)

    def _fed_rationales(self, problem: Problem, text: str) -> dict[str, str]:
        own = text.rpartition(CONCLUSION)[0] if CONCLUSION in text else text
        return fed_rationales(own, self._oracle(problem), self.perturbed_share, problem.question, self.seed)

    def _oracle(self, problem: Problem) -> str | None:
        """The record's rationale for its right answer, if it has one."""
        if self.oracle_field is None:
            return None
        if self.oracle_answer_field is not None:
            led_to = self.read_gold(field_of(problem.record, self.oracle_answer_field))
            if not answers_match(led_to, problem.gold, self.kind):
                return None
        rationale = field_of(problem.record, self.oracle_field)
        return None if rationale is None or not str(rationale).strip() else str(rationale)

    def _predicted(self, problem: Problem, text: str, fed: Mapping[str, bool]) -> Prediction:
        found = extract_answer(text, self.kind, self.choices)
        right = answers_match(found, problem.gold, self.kind)
        return FaithfulPrediction(problem.number, problem.question, text, found, self.gold(problem), right, fed)

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`acc`, `perturbed_acc` and `drop`, and with `oracle_field` the same of the records' rationales."""
        return faithfulness_metrics(with_gold(predictions))


def _outcome(wanted: _Wanted, answer: Answer) -> Outcome:
    number = wanted.problem.number
    if 0 not in answer.completions:
        return Outcome(number, wanted.sample, NO_TEXT, detail=answer.failures.get(0, ""))
    rationale = " ".join(answer.completions[0].text.split())
    return Outcome(number, wanted.sample, KEPT if rationale else EMPTY, {"rationale": rationale}, wanted.answer)
