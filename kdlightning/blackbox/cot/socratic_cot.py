"""Socratic CoT: one student learns to ask subquestions, another to answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from kdlightning.blackbox.answers import AnswerKind, answers_match, extract_answer
from kdlightning.blackbox.base import KEPT, NO_TEXT, Example, Outcome, Prediction, Problem, Round, Rounds
from kdlightning.blackbox.cot.socratic_chain import FINAL, MARK, Chain, chain_of_record, read_chain
from kdlightning.blackbox.cot.socratic_talk import Talk, ask, solve, take_turns
from kdlightning.blackbox.question_answering import NO_GOLD, QuestionAnswering, StudentKind
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Origin, Request, Sampling

NO_CHAIN = "no lines of subquestion ** solution that end in #### answer"
NO_ANSWER = "no answer in the chain's last line"
WRONG = "the chain's answer is wrong"
_FIELDS = ({"chain"}, {"subquestions", "solutions"})


class SocraticCoT(QuestionAnswering):
    """Socratic CoT (Shridhar, Stolfo and Sachan, Findings of ACL 2023).

    A problem P comes with a chain of subquestions and solutions (q_1, s_1), …, (q_n, s_n), annotated by people or
    written by the teacher in one answer, line by line ("q ** s", and "#### answer" at the end, as in GSM8K's Socratic
    file). A chain is kept if its final answer is the gold one. Two students learn from it, each in a fit of its own:

    * `decomposer`: P → the subquestions. Unified: all at once, "{P} ###" → " q_1 ** q_2 ** …". Iterative: the next one
      given what was asked and answered before, "{P} ### q_1 ** s_1 ###" → " q_2", and " ####" after the last.
    * `solver`: P, what was asked and answered before, and q_j → s_j: "{P} ### q_1 ** s_1 ### q_2 **" → " s_2".

    Inference needs no teacher: the decomposer asks, the solver answers one subquestion after the other, both greedily,
    and the answer is that of the last solution. A student whose partner is not there is judged alone, on the chains
    that the records hold or that the teacher wrote: the solver by its final answer to the right subquestions
    (`solver_acc`), the decomposer by asking exactly the right ones (`decomposer_acc`).

    The paper's: chains and their filter, the two students and their inputs, unified and iterative decomposition. There
    is no public code; its guidance (number of steps, equations) and its reward variant could not be checked and are
    left out. Ours: the marks between the parts; that the iterative decomposer is given solutions too; and that a
    solution ends in "#### " and its answer where that is a number (the last calculation annotation, else the last
    number) or final. The last number alone is not the answer in 8 of 400 of GSM8K's own chains.

    Args:
        decomposition: "unified" or "iterative".
        chain_fields: of records that hold their chains, which then no teacher is asked for: `{chain: answer_socratic}`
            for lines, or `{subquestions: decomposition, solutions: facts}` for two lists (StrategyQA), of which the
            last subquestion is answered by the gold answer; other records are dropped. None asks the teacher.
        kind: what answers are.
        choices: letters of `kind="choice"`.
        annotations: whether solutions keep GSM8K's calculation annotations (`<<16-3-4=9>>`).
        samples: chains that the teacher writes for a problem.
        temperature: of the teacher; None is 0 for one sample and 0.7 for several.
        chain_tokens: most tokens of the teacher's chain.
        student_kind: "decoder_only", or "encoder_decoder" (labels without their leading space).
        most_steps: subquestions that inference stops after.
        question_tokens: most tokens of one answer of the decomposer.
        inference_tokens: most tokens of one solution.
        seed: of the teacher's draws.
        chain_prompt: template of the teacher's prompt; it may use `question` and `record`.
    """

    students: ClassVar[tuple[str, ...]] = ("decomposer", "solver")

    def __init__(
        self,
        decomposition: Literal["unified", "iterative"] = "unified",
        chain_fields: dict[str, str] | None = None,
        kind: AnswerKind = "number",
        choices: str = "ABCDE",
        annotations: bool = False,
        samples: int = 1,
        temperature: float | None = None,
        chain_tokens: int = 512,
        student_kind: StudentKind = "decoder_only",
        most_steps: int = 10,
        question_tokens: int = 256,
        inference_tokens: int = 128,
        seed: int = 0,
        chain_prompt: str = "socratic_cot/chain.jinja",
    ) -> None:
        super().__init__(kind, choices, student_kind, inference_tokens)
        if decomposition not in ("unified", "iterative"):
            raise ConfigurationError(f"SocraticCoT: decomposition is unified or iterative, not {decomposition!r}")
        for name, value in {"samples": samples, "most_steps": most_steps}.items():
            if value < 1:
                raise ConfigurationError(f"SocraticCoT: {name} is {value}; give at least 1")
        _check_fields(chain_fields)
        self.iterative = decomposition == "iterative"
        self.chain_fields = dict(chain_fields or {})
        self.asks_teacher = chain_fields is None
        self.annotations = annotations
        self.samples = samples if self.asks_teacher else 1
        heat = temperature if temperature is not None else 0.7 if samples > 1 else 0.0
        self.chain_sampling = Sampling(chain_tokens, heat, seed=seed)
        self.most_steps = most_steps
        self.question_sampling = Sampling(question_tokens)
        self.chain_prompt = chain_prompt

    # -- chains ----------------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round for chains, or none where the records hold them; none of records without a gold answer."""
        asked = [problem for problem in problems if self.gold(problem) is not None]
        outcomes = [
            Outcome(problem.number, sample, NO_GOLD)
            for problem in problems
            if self.gold(problem) is None
            for sample in range(self.samples)
        ]
        if self.asks_teacher:
            answers = yield Round("Chains", [self._chain_request(problem) for problem in asked])
            for problem, answer in zip(asked, answers, strict=True):
                outcomes += [self._read(problem, answer, sample) for sample in range(self.samples)]
        else:
            outcomes += [self._judge(problem, self._chain_of(problem), 0, "") for problem in asked]
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def _chain_request(self, problem: Problem) -> Request:
        prompt = render(self.chain_prompt, question=problem.question, record=problem.record)
        origin = Origin(problem.question, "chain")
        return Request(prompt, samples=self.samples, sampling=self.chain_sampling, origin=origin)

    def _read(self, problem: Problem, answer: Answer, sample: int) -> Outcome:
        if sample not in answer.completions:
            return Outcome(problem.number, sample, NO_TEXT, detail=answer.failures.get(sample, ""))
        text = answer.completions[sample].text.strip()
        return self._judge(problem, self._chain(text), sample, text)

    def _judge(self, problem: Problem, chain: Chain | None, sample: int, text: str) -> Outcome:
        if chain is None:
            return Outcome(problem.number, sample, NO_CHAIN, {"chain": text})
        prediction = chain.steps[-1].answer
        outcome = Outcome(problem.number, sample, KEPT, {"chain": text or chain.text}, prediction)
        if prediction is None:
            return replace(outcome, reason=NO_ANSWER)
        return outcome if answers_match(prediction, problem.gold, self.kind) else replace(outcome, reason=WRONG)

    def _chain(self, text: str) -> Chain | None:
        return read_chain(text, self.kind, self.choices, annotations=self.annotations)

    def _chain_of(self, problem: Problem, outcomes: Mapping[int, Outcome] | None = None) -> Chain | None:
        """The chain of the record itself, or the one that was kept."""
        if not self.asks_teacher:
            gold, fields = self.gold(problem), self.chain_fields
            return chain_of_record(problem.record, fields, gold, self.kind, self.choices, annotations=self.annotations)
        outcome = (outcomes or {}).get(problem.number)
        return None if outcome is None else self._chain(outcome.texts["chain"])

    # -- the students ----------------------------------------------------------------------------------------------

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """Of each kept chain one text for the decomposer (iterative: one a step, and the end), and one a step."""
        found: dict[str, list[Example]] = {name: [] for name in self.students}
        for outcome in outcomes:
            chain = self._chain_of(problem, {problem.number: outcome}) if outcome.kept else None
            if chain is None:
                continue
            for name, pairs in (
                ("decomposer", self._asking(problem, chain)),
                ("solver", self._solving(problem, chain)),
            ):
                found[name] += [Example(problem.number, prompt, self.label(label)) for prompt, label in pairs]
        return found

    def prompt(self, problem: Problem) -> str:
        """`{question} ###`."""
        return Talk(problem).prompt

    def _asking(self, problem: Problem, chain: Chain) -> list[tuple[str, str]]:
        if not self.iterative:
            return [(self.prompt(problem), f" {MARK} ".join(step.question for step in chain.steps))]
        talk, pairs = Talk(problem), []
        for step in chain.steps:
            pairs.append((talk.prompt, step.question))
            talk.add(step.question, step.label)
        return [*pairs, (talk.prompt, FINAL)]

    def _solving(self, problem: Problem, chain: Chain) -> list[tuple[str, str]]:
        talk, pairs = Talk(problem), []
        for step in chain.steps:
            pairs.append((talk.asking(step.question), step.label))
            talk.add(step.question, step.label)
        return pairs

    # -- inference -------------------------------------------------------------------------------------------------

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """The decomposer asks, the solver answers one subquestion after the other."""
        talks = [Talk(problem) for problem in problems]
        if self.iterative:
            yield from take_turns(talks, self.most_steps, self.question_sampling, self.inference_sampling)
        else:
            yield from ask(talks, self.most_steps, self.question_sampling)
            yield from solve(talks, self.inference_sampling)
        return [self._prediction(talk) for talk in talks]

    def _prediction(self, talk: Talk) -> Prediction:
        problem, last = talk.problem, talk.steps[-1][1] if talk.steps else ""
        found = extract_answer(last, self.kind, self.choices)
        right = answers_match(found, problem.gold, self.kind)
        return Prediction(problem.number, problem.question, talk.text, found, self.gold(problem), right)

    def infer_alone(
        self, student: str, problems: Sequence[Problem], outcomes: Sequence[Outcome]
    ) -> Rounds[list[Prediction]]:
        """The solver on the right subquestions, or the decomposer by whether it asks exactly those."""
        first = {outcome.record: outcome for outcome in reversed(outcomes)}
        chains = [(problem, self._chain_of(problem, first)) for problem in problems]
        known = [(problem, chain) for problem, chain in chains if chain is not None]
        if student == "solver":
            talks = [Talk(problem, waiting=[step.question for step in chain.steps]) for problem, chain in known]
            yield from solve(talks, self.inference_sampling)
            return [self._prediction(talk) for talk in talks]
        pairs = [(problem, self._asking(problem, chain)) for problem, chain in known]
        prompts = [prompt for _, asked in pairs for prompt, _ in asked]
        requests = [Request(prompt, sampling=self.question_sampling) for prompt in prompts]
        answers = iter((yield Round("Subquestions", requests, role="decomposer")))
        return [_compared(problem, [label for _, label in asked], answers) for problem, asked in pairs]


def _compared(problem: Problem, labels: Sequence[str], answers: Any) -> Prediction:
    texts = [" ".join("".join(next(answers).texts).split()) for _ in labels]
    gold, text = "\n".join(labels), "\n".join(texts)
    return Prediction(problem.number, problem.question, text, text, gold, answers_match(text, gold, "text"))


def _check_fields(fields: Mapping[str, str] | None) -> None:
    if fields is None or set(fields) in _FIELDS:
        return
    known = [name for group in _FIELDS for name in group]
    wrong = next((name for name in fields if name not in known), None)
    raise ConfigurationError(
        "SocraticCoT: chain_fields names the field of chain, or those of subquestions and solutions, not of "
        f"{' and '.join(fields) or 'nothing'}{'' if wrong is None else nearest(wrong, known)}"
    )
