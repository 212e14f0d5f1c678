"""A referee that scores two answers to an instruction, whichever comes first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kdlightning.blackbox.base import Round, Rounds
from kdlightning.blackbox.instruction.instruction_following import asked
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Origin, Request, Sampling

NO_REVIEW = "the referee did not answer"
NO_SCORES = "no scores in the referee's text"
ORDERS = ("teacher first", "student first")
_LINE = (
    r"^[^\w\n]*(?:score (?:of|for) )?(?:the )?assistant {}(?:'s score)?[ \t*_]*[:=][ \t*_]*"
    r"(\d+(?:\.\d+)?)(?: ?/ ?10)?(?: points?)?[\s*_.]*$"
)
_SCORES = [re.compile(_LINE.format(number), re.IGNORECASE | re.MULTILINE) for number in (1, 2)]


@dataclass(frozen=True)
class Comparison:
    """Two answers to be compared.

    Attributes:
        origin: the record's, for generators that look answers up.
        instruction: what was asked.
        teacher: the teacher's answer.
        student: the student's answer.
    """

    origin: Origin
    instruction: str
    teacher: str
    student: str


@dataclass
class Verdict:
    """What a referee made of a comparison.

    Attributes:
        reviews: the referee's last text for each order that it answered.
        scores: of teacher and student, from 1 to 10, for each order in which both could be read.
        reason: why the comparison failed, or empty.
        detail: a sentence more.
    """

    reviews: dict[str, str] = field(default_factory=dict)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""

    @property
    def teacher(self) -> float:
        """The teacher's mean score over both orders."""
        return sum(teacher for teacher, _ in self.scores.values()) / len(ORDERS)

    @property
    def student(self) -> float:
        """The student's mean score over both orders."""
        return sum(student for _, student in self.scores.values()) / len(ORDERS)


@dataclass(frozen=True)
class Referee:
    """Asks a referee about each pair of answers twice, with their order swapped.

    Attributes:
        sampling: of its text.
        retries: how often it is asked again, each time for one more sample, where scores are missing.
        prompt: template; it may use `instruction`, `first` and `second`.
        system_prompt: template of a system message, or None.
    """

    sampling: Sampling
    retries: int
    prompt: str
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ConfigurationError(f"referee_retries is {self.retries}: give 0 (ask once) or more")
        if self.retries and self.sampling.greedy:
            raise ConfigurationError(
                "referee_temperature is 0, and asking again would bring the same text: "
                "raise it, or set referee_retries to 0"
            )

    def judge(self, comparisons: Sequence[Comparison]) -> Rounds[list[Verdict]]:
        """One round for everything, and one for each time that texts without scores are asked for again."""
        verdicts = [Verdict() for _ in comparisons]
        open_ = [(number, order) for number in range(len(comparisons)) for order in ORDERS]
        for attempt in range(self.retries + 1):
            if not open_:
                break
            name = f"Referee, again ({attempt})" if attempt else "Referee"
            requests = [self._request(comparisons[number], order, attempt) for number, order in open_]
            answers = yield Round(name, requests, role="referee")
            open_ = list(self._read(verdicts, open_, answers, attempt))
        for number, order in open_:
            verdicts[number].reason = verdicts[number].reason or NO_SCORES
            verdicts[number].detail = verdicts[number].detail or f"asked {self.retries + 1} times, {order}"
        return verdicts

    def _request(self, comparison: Comparison, order: str, attempt: int) -> Request:
        answers = (comparison.teacher, comparison.student)
        first, second = answers if order == ORDERS[0] else answers[::-1]
        prompt = render(self.prompt, instruction=comparison.instruction, first=first, second=second)
        given = {**comparison.origin.given, "response": comparison.teacher, "student": comparison.student}
        origin = replace(comparison.origin, step="review", given=given)
        return asked(prompt, self.system_prompt, self.sampling, origin, attempt)

    @staticmethod
    def _read(
        verdicts: Sequence[Verdict], open_: Sequence[tuple[int, str]], answers: Sequence[Answer], attempt: int
    ) -> Iterator[tuple[int, str]]:
        """Fills in what could be read; yields what is to be asked again."""
        for (number, order), answer in zip(open_, answers, strict=True):
            verdict = verdicts[number]
            completion = answer.completions.get(attempt)
            if completion is None:
                # Not asked again: a generator has its own retries, and the next run asks for what failed.
                verdict.reason, verdict.detail = NO_REVIEW, answer.failures.get(attempt, "")
                continue
            verdict.reviews[order] = completion.text.strip()
            scores = read_scores(completion.text)
            if scores is None:
                yield number, order
            else:
                verdict.scores[order] = scores if order == ORDERS[0] else scores[::-1]


def read_scores(text: str) -> tuple[float, float] | None:
    """Scores of assistants 1 and 2, from 1 to 10, or None.

    The last line counts that consists of nothing but a score: "Score of the Assistant 1: 8", "Assistant 1: 8/10",
    "**Score of the Assistant 1:** 7.5".
    """
    found = [pattern.findall(text) for pattern in _SCORES]
    if not all(found):
        return None
    one, two = (float(each[-1]) for each in found)
    return (one, two) if 1 <= one <= 10 and 1 <= two <= 10 else None
