"""Several predictions for one query, and the one that most of them make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def majority(votes: Sequence[str]) -> list[str]:
    """The candidates with the most votes, in the order in which they were first voted for; several if they tie."""
    counts: dict[str, int] = {}
    for vote in votes:
        counts[vote] = counts.get(vote, 0) + 1
    most = max(counts.values(), default=0)
    return [candidate for candidate, count in counts.items() if count == most]


def likeliest(candidates: Sequence[str], scores: Sequence[Mapping[str, float]]) -> str:
    """The candidate whose scores have the lowest sum; of equal ones the first.

    Args:
        candidates: at least one.
        scores: mean negative log-likelihood a token by candidate, one mapping for each context.
    """
    return min(candidates, key=lambda candidate: sum(each[candidate] for each in scores))
