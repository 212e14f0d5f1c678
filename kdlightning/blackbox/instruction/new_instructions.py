"""Asks for new instructions that resemble given ones, and keeps those that are new indeed."""

from __future__ import annotations

import random
import string
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdlightning.blackbox.base import KEPT, Outcome, Round, Rounds
from kdlightning.blackbox.instruction.instruction_following import asked
from kdlightning.blackbox.instruction.similarity import SimilarityIndex
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Origin, Request, Sampling

HARD, EASY = "hard", "easy"
KINDS = (HARD, EASY)
NO_NEW = "no new instruction was written"
WORD = "it contains the word instruction"
CUT_SHORT = "the new instruction is cut off"
TOO_SHORT = "three words or fewer"
PUNCTUATION = "it starts with punctuation"
NOT_ASCII = "it starts with a character outside ASCII"
SIMILAR = "too similar to an instruction of the pool"
NOT_NEEDED = "judged, and not needed as a seed"
_ENOUGH_WORDS = 4
_TOKENS_A_WORD = 4


@dataclass(frozen=True)
class Seed:
    """A judged instruction, from which new ones are made.

    Attributes:
        record: its record's number.
        origin: the record's, for generators that look answers up.
        instruction: the instruction, with its input.
        kind: "hard" or "easy".
        texts: what its first outcome is to hold: the answers and their scores.
    """

    record: int
    origin: Origin
    instruction: str
    kind: str
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Writer:
    """Asks for new instructions until there are enough, or every seed was tried often enough.

    Attributes:
        wanted: how many new instructions, by kind.
        attempts: most tries with one seed.
        max_similarity: of a new instruction to any other one, in ROUGE-L.
        sampling: of new instructions; `max_tokens` is made for each seed.
        prompts: templates by kind; each may use `instruction`.
        system_prompt: template of a system message, or None.
    """

    wanted: Mapping[str, int]
    attempts: int
    max_similarity: float
    sampling: Sampling
    prompts: Mapping[str, str]
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        for kind, count in self.wanted.items():
            if count < 0:
                raise ConfigurationError(f"{kind} is {count}: give a number of new instructions, 0 for none")
        if self.attempts < 1:
            raise ConfigurationError(f"attempts is {self.attempts}: give at least 1")
        SimilarityIndex(self.max_similarity)

    def write(self, seeds: Sequence[Seed], pool: Iterable[str]) -> Rounds[list[Outcome]]:
        """An outcome for each try, and one for each seed that was not needed.

        Args:
            seeds: hard and easy ones.
            pool: all instructions so far, for the comparison.
        """
        index = SimilarityIndex(self.max_similarity, pool)
        waiting = {kind: self._order(kind, seeds) for kind in KINDS}
        missing = dict(self.wanted)
        outcomes: list[Outcome] = []
        number = 0
        while tries := [tried for kind in KINDS for tried in _taken(waiting[kind], missing[kind])]:
            number += 1
            requests = [self._request(seed, attempt) for seed, attempt in tries]
            answers = yield Round(f"New instructions ({number})", requests)
            for (seed, attempt), answer in zip(tries, answers, strict=True):
                outcome = self._read(seed, attempt, answer, index)
                outcomes.append(outcome)
                missing[seed.kind] -= outcome.kept
        for left in waiting.values():
            outcomes += [
                Outcome(seed.record, 0, NOT_NEEDED, seed.texts, seed.kind) for seed, attempt in left if attempt == 0
            ]
        return outcomes

    def _order(self, kind: str, seeds: Sequence[Seed]) -> deque[tuple[Seed, int]]:
        """Seeds of a kind in a random order, each once before any comes again."""
        chosen = [seed for seed in seeds if seed.kind == kind]
        random.Random(f"{self.sampling.seed} {kind}").shuffle(chosen)
        return deque((seed, attempt) for attempt in range(self.attempts) for seed in chosen)

    def _request(self, seed: Seed, attempt: int) -> Request:
        prompt = render(self.prompts[seed.kind], instruction=seed.instruction)
        most = _TOKENS_A_WORD * max(1, len(seed.instruction.split()))
        sampling = replace(self.sampling, max_tokens=most)
        return asked(prompt, self.system_prompt, sampling, replace(seed.origin, step=f"new_{seed.kind}"), attempt)

    @staticmethod
    def _read(seed: Seed, attempt: int, answer: Answer, index: SimilarityIndex) -> Outcome:
        texts = dict(seed.texts) if attempt == 0 else {}
        completion = answer.completions.get(attempt)
        if completion is None:
            return Outcome(seed.record, attempt, NO_NEW, texts, seed.kind, answer.failures.get(attempt, ""))
        text = completion.text.strip()
        texts["new_instruction"] = text
        reason = rejection(completion)
        if reason is not None:
            return Outcome(seed.record, attempt, reason, texts, seed.kind)
        near = index.nearest(text)
        if near is not None:
            return Outcome(seed.record, attempt, SIMILAR, texts, seed.kind, f"ROUGE-L {near[0]:.2f} with: {near[1]}")
        index.add(text)
        return Outcome(seed.record, attempt, KEPT, texts, seed.kind)


def rejection(completion: Completion) -> str | None:
    """Why a new instruction is dropped, or None, as the paper has it; its likeness to others is looked at apart."""
    text = completion.text.strip()
    if "instruction" in text.lower():
        return WORD
    if completion.finish == "length":
        return CUT_SHORT
    if len(text.split()) < _ENOUGH_WORDS:
        return TOO_SHORT
    if text[0] in string.punctuation:
        return PUNCTUATION
    return None if text[0].isascii() else NOT_ASCII


def _taken(waiting: deque[tuple[Seed, int]], count: int) -> list[tuple[Seed, int]]:
    return [waiting.popleft() for _ in range(min(count, len(waiting)))]
