"""Wrong answers, drawn from the question and a seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence


def wrong_answer(candidates: Sequence[str], gold: str, purpose: str, question: str, seed: int) -> str | None:
    """One of the candidates that are not the gold answer, whatever their order was and what was drawn before.

    Args:
        candidates: answers to draw from; they may repeat.
        gold: the right one, told apart but for case and whitespace.
        purpose: what it is for: two purposes of one question draw apart.
        question: the question.
        seed: of the draw.

    Returns:
        None if there is no other.
    """
    wrong = sorted({each for each in candidates if _plain(each) != _plain(gold)})
    return random.Random(f"{seed}:{purpose}:{question}").choice(wrong) if wrong else None


def _plain(answer: str) -> str:
    return " ".join(answer.split()).casefold()
