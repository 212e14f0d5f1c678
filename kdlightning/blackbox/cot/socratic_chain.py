"""Chains of subquestions and their solutions, read and written line by line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdlightning.blackbox.answers import AnswerKind, extract_answer
from kdlightning.generation.records import Record, field_of

MARK = "**"
"""Between a subquestion and its solution, as GSM8K's Socratic file has it, and between subquestions."""
FINAL = "####"
NEXT = "###"
"""Between the problem and the steps in what a student is given."""
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_VALUE = re.compile(r"<<[^<>\n]*=([^<>=\n]*)>>")


@dataclass(frozen=True)
class Step:
    """A subquestion and its solution.

    Attributes:
        question: the subquestion.
        solution: one sentence or more, on one line.
        answer: the intermediate answer in canonical form; None where it is not known.
    """

    question: str
    solution: str
    answer: str | None = None

    @property
    def label(self) -> str:
        """The solution as the solver writes it, ended by its answer unless it is that alone."""
        alone = self.answer is None or self.answer == self.solution
        return self.solution if alone else f"{self.solution} {FINAL} {self.answer}"


@dataclass(frozen=True)
class Chain:
    """A problem's decomposition.

    Attributes:
        steps: in their order.
        answer: the final answer as text.
    """

    steps: tuple[Step, ...]
    answer: str

    @property
    def text(self) -> str:
        """Line by line, as it was read."""
        lines = [f"{step.question} {MARK} {step.solution}" for step in self.steps]
        return "\n".join([*lines, f"{FINAL} {self.answer}"])


def read_chain(text: str, kind: AnswerKind, choices: str = "ABCDE", *, annotations: bool = False) -> Chain | None:
    """A chain out of lines "subquestion ** solution", the last one "#### answer"; empty lines do not count.

    Intermediate answers of numbers are those of the last calculation annotation of a step, else its last number. The
    last step's is the chain's.

    Args:
        text: the lines.
        kind: what answers are.
        choices: letters of `kind="choice"`.
        annotations: keep calculation annotations (`<<16-3-4=9>>`) in the solutions.

    Returns:
        None if a line is no step, or there is no step, or the last line is no answer.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or not lines[-1].startswith(FINAL):
        return None
    answer = lines.pop()[len(FINAL) :].strip()
    pairs = [(question, solution) for question, _, solution in (line.partition(MARK) for line in lines)]
    return _chain(pairs, answer, kind, choices, annotations)


def chain_of_record(
    record: Record,
    fields: Mapping[str, str],
    final: str | None,
    kind: AnswerKind,
    choices: str = "ABCDE",
    *,
    annotations: bool = False,
) -> Chain | None:
    """The chain that a record holds itself.

    Args:
        record: the record.
        fields: `{"chain": FIELD}` for the lines that `read_chain` reads, or `{"subquestions": FIELD, "solutions":
            FIELD}` for two lists; of the latter the last subquestion is answered by the final answer, which solutions
            therefore lack.
        final: the right answer.
        kind: what answers are.
        choices: letters of `kind="choice"`.
        annotations: as for `read_chain`.

    Returns:
        None if there is none, or the lists do not fit each other.

    Raises:
        ConfigurationError: the record lacks a field.
    """
    if "chain" in fields:
        value = field_of(record, fields["chain"])
        return read_chain(value, kind, choices, annotations=annotations) if isinstance(value, str) else None
    questions, solutions = (field_of(record, fields[name]) for name in ("subquestions", "solutions"))
    lists = isinstance(questions, Sequence) and isinstance(solutions, Sequence)
    if final is None or not lists or len(questions) != len(solutions) + 1:
        return None
    pairs = [(str(question), str(said)) for question, said in zip(questions, [*solutions, final], strict=True)]
    return _chain(pairs, final, kind, choices, annotations)


def _chain(
    pairs: Sequence[tuple[str, str]], answer: str, kind: AnswerKind, choices: str, annotations: bool
) -> Chain | None:
    last = extract_answer(f"{FINAL} {answer}", kind, choices)
    steps = []
    for place, (asked, said) in enumerate(pairs, start=1):
        question, plain = " ".join(asked.split()), " ".join(_ANNOTATION.sub("", said).split())
        if not question or not plain:
            return None
        value = last if place == len(pairs) else _value(said, plain) if kind == "number" else None
        steps.append(Step(question, " ".join(said.split()) if annotations else plain, value))
    return Chain(tuple(steps), answer) if steps else None


def _value(solution: str, plain: str) -> str | None:
    """The intermediate answer of a step of numbers."""
    noted = [extract_answer(value, "number") for value in _VALUE.findall(solution)]
    return noted[-1] if noted and noted[-1] is not None else extract_answer(plain, "number")
