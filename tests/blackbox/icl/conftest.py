"""Records of three families of tiny tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FAMILIES = {
    "sign": {"sign_a": "{n} - 10 is", "sign_b": "Is {n} more than 10?"},
    "parity": {"parity_a": "{n} is", "parity_b": "Is {n} even?"},
    "after": {"after_a": "After {n} comes"},
}


def answer(task: str, n: int) -> str:
    """The right answer of a task for a number."""
    return {
        "sign_a": "negative" if n < 10 else "positive",
        "sign_b": "yes" if n > 10 else "no",
        "parity_a": "odd" if n % 2 else "even",
        "parity_b": "no" if n % 2 else "yes",
        "after_a": f"number {n + 1}",
    }[task]


def make_records(count: int) -> list[dict[str, Any]]:
    """`count` records of each of five tasks; "after_a" has as many answers as records."""
    return [
        {"family": family, "task": task, "prompt": prompt.format(n=n), "completion": answer(task, n)}
        for family, tasks in FAMILIES.items()
        for task, prompt in tasks.items()
        for n in range(count)
    ]


@pytest.fixture
def tasks() -> Callable[[int], list[dict[str, Any]]]:
    """Makes records of tasks with the fields family, task, prompt and completion."""
    return make_records
