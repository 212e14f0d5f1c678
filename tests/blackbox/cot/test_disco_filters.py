"""The heuristic filter of DISCO: each of its reasons, their order, and its measure of likeness."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.blackbox.cot import disco_filters as filters
from kdlightning.blackbox.cot.disco_filters import DiscoHeuristics, contains, jaccard, words
from kdlightning.errors import ConfigurationError

PREMISE = "A tall man in a blue shirt plays the old guitar on the stage."
HYPOTHESIS = "A man plays music."


def reason(phrase: str, label: str = "neutral", sentence: str = "", **options: float) -> str | None:
    sentence = sentence or PREMISE.replace("plays the old guitar", phrase)
    return DiscoHeuristics(**options).reason(phrase, PREMISE, HYPOTHESIS, sentence, HYPOTHESIS, label)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("waits for his bus", None),
        ("", filters.EMPTY),
        (" .-! ", filters.EMPTY),
        ("a man plays MUSIC", filters.COPIED_HYPOTHESIS),
        ("we think a man plays music, loudly", filters.CONTAINS_HYPOTHESIS),
        ("plays music", filters.IN_HYPOTHESIS),
        ("in a blue shirt", filters.IN_PREMISE),
        ("a man plays some music", filters.LIKE_HYPOTHESIS),
        ("the tall man plays an old guitar on a stage", filters.LIKE_PREMISE),
        ("sits; It is true that nobody cares", filters.FORBIDDEN),
        ("sits. Conclusion: he waits", filters.FORBIDDEN),
        ("tunes ____ quietly", filters.GAP),
        ("knows many songs", None),
    ],
)
def test_each_reason(phrase: str, expected: str | None) -> None:
    assert reason(phrase) == expected


def test_negations_are_dropped_for_contradictions_alone() -> None:
    for phrase in ("is not there", "isn't there", "isn’t there", "has no instrument"):
        assert reason(phrase, "contradiction") == filters.NEGATION
        assert reason(phrase, "neutral") is None
    assert reason("knows nowadays notes", "contradiction") is None, "letters inside words negate nothing"


def test_a_new_sentence_may_not_become_the_other_one() -> None:
    near = "A man plays music today"
    assert reason("anything else", sentence=near) is None
    assert reason("anything else", sentence=HYPOTHESIS) == filters.NEW_LIKE_OTHER
    assert reason("anything else", sentence=near, sentence_overlap=0.7) == filters.NEW_LIKE_OTHER


def test_thresholds_are_options() -> None:
    like = "the tall man plays an old guitar on a stage"
    assert reason(like, premise_overlap=1.0) is None
    assert reason("a man plays some music", hypothesis_overlap=1.0) is None
    with pytest.raises(ConfigurationError, match="premise_overlap is 2"):
        DiscoHeuristics(premise_overlap=2)


def test_likeness_counts_each_word_as_often_as_it_occurs() -> None:
    assert jaccard(words("a a b"), words("a b b")) == pytest.approx(2 / 4)
    assert jaccard(words("A man, plays!"), words("a man plays")) == 1.0
    assert jaccard([], []) == 1.0
    assert jaccard([], ["a"]) == 0.0


def test_what_contains_what_is_a_matter_of_whole_words() -> None:
    assert contains(words("the old man"), words("old man"))
    assert not contains(words("the golden man"), words("old"))
    assert not contains(words("old the man"), words("old man"))
    assert not contains(["a"], [])


WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@given(WORDS, WORDS)
def test_likeness_is_symmetric_and_one_for_rearrangements_alone(one: list[str], other: list[str]) -> None:
    assert jaccard(one, other) == jaccard(other, one)
    assert 0 <= jaccard(one, other) <= 1
    assert (jaccard(one, other) == 1) == (Counter(one) == Counter(other))
