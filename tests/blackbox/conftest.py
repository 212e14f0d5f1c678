"""A handful of sums with a teacher's recorded text, and helpers to drive methods without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdlightning.blackbox.base import BlackBoxMethod, Problem, problems_from


def make_sums(count: int) -> list[dict[str, Any]]:
    """Records of sums; every fifth answer of the teacher is wrong, every seventh is missing."""
    records = []
    for number in range(count):
        one, other = number % 7 + 1, number % 5 + 2
        said: float | None = float(one + other + (number % 5 == 4))
        records.append(
            {
                "question": f"Ann has {one} apples and buys {other} in shop {number}. How many has she?",
                "answer": float(one + other),
                "why": f"She has {one} and buys {other}. {one} + {other} = {one + other}.",
                "said": said if number % 7 != 6 else None,
            }
        )
    return records


@pytest.fixture
def sums() -> Callable[[int], list[dict[str, Any]]]:
    """Makes records of sums with the fields question, answer (gold), why and said (the teacher's)."""
    return make_sums


@pytest.fixture
def problems() -> Callable[[BlackBoxMethod, list[dict[str, Any]]], list[Problem]]:
    """Records of sums as problems of a method."""
    return lambda method, records: problems_from(records, method, "question", "answer")
