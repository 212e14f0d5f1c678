"""What a method would ask next, without asking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlightning.blackbox.base import Rounds, player
from kdlightning.generation.base import Answer, TextGenerator
from kdlightning.generation.budget import Estimate
from kdlightning.generation.engine import Engine
from kdlightning.generation.store import CompletionStore


def estimate_rounds(
    rounds: Rounds[Any], generators: Mapping[str, TextGenerator], store: CompletionStore
) -> tuple[str | None, Estimate]:
    """The first round that the store has not all answers of: its name, and what it would ask and cost at most.

    The rounds before it are played from the store; those after it depend on its answers.

    Args:
        rounds: of `BlackBoxMethod.collect`.
        generators: by role; none of them is asked.
        store: of earlier answers.

    Returns:
        None as the name if nothing is to be asked.
    """
    answers: list[Answer] | None = None
    while True:
        try:
            current = next(rounds) if answers is None else rounds.send(answers)
        except StopIteration:
            return None, Estimate()
        engine = Engine(player(current, generators), store, progress=False)
        found = engine.estimate(current.requests)
        if found.answers:
            return current.name, found
        answers = engine.run(current.requests, current.name).answers
