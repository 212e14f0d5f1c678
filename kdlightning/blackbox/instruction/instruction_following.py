"""Instruction following: a student learns to answer instructions as a large teacher does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdlightning.blackbox.answers import answers_match
from kdlightning.blackbox.base import (
    KEPT,
    NO_TEXT,
    BlackBoxMethod,
    Example,
    Outcome,
    Prediction,
    Problem,
    Round,
    Rounds,
)
from kdlightning.blackbox.instruction.rouge import require_rouge, rouge_l
from kdlightning.blackbox.question_answering import StudentKind
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Origin, Request, Sampling
from kdlightning.generation.records import field_of

EMPTY = "the answer is empty"
CUT = "the answer is cut off at teacher_tokens"
REFUSED = "the teacher refuses"
REFUSAL = (
    r"(unfortunately, )?(i'm|i am) (very |really |so )?sorry,? (but )?(i|as an ai)\b"
    r"|(unfortunately, )?i (cannot|can't|am unable to|am not able to|won't|will not) "
    r"(help|assist|provide|answer|fulfil|complete|comply|generate|create|write|access|engage|give|offer|do that)"
    r"|as an ai( language)?( model)?,? i ([a-z']+ ){0,3}?(cannot|can't|do not|don't|am not|am unable)\b"
)


class InstructionFollowing(BlackBoxMethod):
    """Instruction-following distillation: the imitation stage of Lion (Jiang, Chan, Chen and Wang, EMNLP 2023).

    The teacher answers each instruction, and the student learns "### Instruction:", the instruction, "### Response:" →
    the answer, each on lines of its own, loss on the answer alone. Answers that are missing, empty, cut off or refusals
    are dropped; those that are too long for `max_length` are dropped by the data. The metric is `rouge_l`, the mean
    ROUGE-L (F) of the student's greedy answers against the records' gold field, which is to hold a teacher's answers.
    `HardInstructions` finds and writes what the student should learn next.

    The paper's (formats and numbers from the authors' code): the prompt, for teacher and student alike; temperature 0.7
    and 1024 tokens for the teacher; the student is trained for 3 epochs at learning rate 2e-5, batch 128, cosine with
    warm-up over 3 % of the steps. Ours: the filters (there is none in the code); an `input` is joined to its
    instruction by a template; the metric (the paper has GPT-4 as its judge, which is not verifiable here); greedy
    inference (the code draws at temperature 0.7: `inference_temperature`).

    Args:
        input_field: field of what an instruction is about, for example the sentence to translate; empty where there is
            nothing. None if the records have none. Recorded answers are looked up by it too.
        teacher_tokens: most tokens of the teacher's answer.
        teacher_temperature: of the teacher's answer.
        keep_cut: keep answers that are cut off at `teacher_tokens`, as the authors' code does.
        refusal: regular expression of how a refusal begins, in any case; empty keeps refusals.
        student_kind: "decoder_only" or "encoder_decoder".
        inference_tokens: most tokens of a student's answer.
        inference_temperature: of a student's answer; 0 is greedy.
        seed: of all draws.
        instruction_prompt: template that joins `instruction` and `input`; it may use `record`.
        teacher_prompt: template of what the teacher is asked, with the joined `instruction`.
        student_prompt: the same for the student. A chat template is one too: `instruction_following/chatml.jinja`.
        system_prompt: template of a system message; the teacher then gets messages instead of a prompt. The paper's is
            `instruction_following/system.jinja`.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """

    def __init__(
        self,
        input_field: str | None = None,
        teacher_tokens: int = 1024,
        teacher_temperature: float = 0.7,
        keep_cut: bool = False,
        refusal: str = REFUSAL,
        student_kind: StudentKind = "decoder_only",
        inference_tokens: int = 1024,
        inference_temperature: float = 0.0,
        seed: int = 0,
        instruction_prompt: str = "instruction_following/instruction.jinja",
        teacher_prompt: str = "instruction_following/prompt.jinja",
        student_prompt: str = "instruction_following/prompt.jinja",
        system_prompt: str | None = None,
    ) -> None:
        require_rouge("InstructionFollowing")
        if student_kind not in ("decoder_only", "encoder_decoder"):
            raise ConfigurationError(f"student_kind is decoder_only or encoder_decoder, not {student_kind!r}")
        try:
            re.compile(refusal)
        except re.error as error:
            raise ConfigurationError(f"refusal is no regular expression ({error}): mend it, or leave it out") from error
        self.input_field = input_field
        self.context_fields = {} if input_field is None else {"input": input_field}
        self.teacher_sampling = Sampling(teacher_tokens, teacher_temperature, seed=seed)
        self.keep_cut = keep_cut
        self.refusal = refusal
        self.encoder_decoder = student_kind == "encoder_decoder"
        self.inference_sampling = Sampling(inference_tokens, inference_temperature, seed=seed)
        self.instruction_prompt = instruction_prompt
        self.teacher_prompt = teacher_prompt
        self.student_prompt = student_prompt
        self.system_prompt = system_prompt

    # -- the teacher -----------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round."""
        answers = yield Round("Answers", [self.teacher_request(problem) for problem in problems])
        return [self.read_teacher(problem, answer) for problem, answer in zip(problems, answers, strict=True)]

    def teacher_request(self, problem: Problem) -> Request:
        """What the teacher is asked about a record; the same in every method, so that it answers once."""
        prompt = render(self.teacher_prompt, instruction=self.instruction(problem), record=problem.record)
        return asked(prompt, self.system_prompt, self.teacher_sampling, self.origin(problem, "response"))

    def read_teacher(self, problem: Problem, answer: Answer) -> Outcome:
        """The teacher's answer, kept or dropped."""
        completion = answer.completions.get(0)
        if completion is None:
            return Outcome(problem.number, 0, NO_TEXT, detail=answer.failures.get(0, ""))
        text = completion.text.strip()
        reason = KEPT
        if not text:
            reason = EMPTY
        elif completion.finish == "length" and not self.keep_cut:
            reason = CUT
        elif self.refusal and re.match(self.refusal, text.replace("’", "'"), re.IGNORECASE):
            reason = REFUSED
        return Outcome(problem.number, 0, reason, {"response": text})

    def instruction(self, problem: Problem) -> str:
        """A record's instruction, joined with its input."""
        given = self.context(problem).get("input", "")
        joined = render(self.instruction_prompt, instruction=problem.question, input=given, record=problem.record)
        return joined.strip()

    def origin(self, problem: Problem, step: str) -> Origin:
        """Where a request about a record comes from."""
        return Origin(problem.question, step, self.context(problem))

    def context(self, problem: Problem) -> dict[str, str]:
        """What a record's answer depends on beside its question, by name."""
        if self.input_field is None:
            return {}
        value = field_of(problem.record, self.input_field)
        return {"input": "" if value is None else str(value).strip()}

    # -- the student -----------------------------------------------------------------------------------------------

    def prompt(self, problem: Problem) -> str:
        """The student's prompt."""
        return render(self.student_prompt, instruction=self.instruction(problem), record=problem.record)

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The teacher's answer behind the student's prompt."""
        kept = [outcome.texts["response"] for outcome in outcomes if outcome.kept]
        return {"student": [Example(problem.number, self.prompt(problem), text) for text in kept]}

    def student_request(self, problem: Problem, sampling: Sampling) -> Request:
        """What the student is asked about a record."""
        return Request(self.prompt(problem), sampling=sampling, origin=self.origin(problem, "student"))

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """One answer a record; it is `correct` if it is the gold one but for case and space."""
        requests = [self.student_request(problem, self.inference_sampling) for problem in problems]
        answers = yield Round("Inference", requests, role="student")
        predictions = []
        for problem, answer in zip(problems, answers, strict=True):
            text = "".join(answer.texts).strip()
            right = answers_match(text, problem.gold, "text")
            predictions.append(Prediction(problem.number, problem.question, text, text, problem.gold, right))
        return predictions

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`rouge_l` over the records that have a gold answer; nothing if none has."""
        scores = [rouge_l(each.gold, each.text) for each in predictions if each.gold is not None]
        return {"rouge_l": sum(scores) / len(scores)} if scores else {}


def asked(prompt: str, system_prompt: str | None, sampling: Sampling, origin: Origin, sample: int = 0) -> Request:
    """A request for one answer: the prompt, or messages where there is a system prompt.

    Args:
        prompt: what is asked.
        system_prompt: template of the system message, or None.
        sampling: how tokens are chosen.
        origin: where the request comes from.
        sample: the number of the answer.
    """
    if system_prompt is None:
        return Request(prompt, sampling=sampling, origin=origin, first_sample=sample)
    system = {"role": "system", "content": render(system_prompt)}
    messages = [system, {"role": "user", "content": prompt}]
    return Request(messages=messages, sampling=sampling, origin=origin, first_sample=sample)
