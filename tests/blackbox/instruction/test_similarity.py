"""A pool answers as if a new text were compared with every text of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.instruction.rouge import rouge_l, words
from kdlightning.blackbox.instruction.similarity import SimilarityIndex
from kdlightning.errors import ConfigurationError

WORDS = ["the", "a", "red", "green", "blue", "fox", "dog", "sings", "runs", "7"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def compared_with_all(threshold: float, pool: list[str], text: str) -> tuple[float, str] | None:
    scores = [(rouge_l(other, text), other) for other in pool]
    best = max(scores, key=lambda pair: pair[0], default=None)
    return best if best is not None and best[0] > threshold else None


@settings(deadline=None, max_examples=100)
@given(st.lists(TEXTS, max_size=12), TEXTS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.75, 1.0]))
def test_pruning_changes_nothing(pool: list[str], text: str, threshold: float) -> None:
    index = SimilarityIndex(threshold, pool)
    assert index.nearest(text) == compared_with_all(threshold, pool, text)
    assert len(index) == len(pool)


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS)
def test_rouge_l_is_the_f_of_the_longest_common_subsequence(one: str, other: str) -> None:
    row = [0] * (len(other.split()) + 1)
    for word in one.split():
        before = 0
        for place, theirs in enumerate(other.split(), start=1):
            before, row[place] = row[place], before + 1 if word == theirs else max(row[place], row[place - 1])
    total = len(one.split()) + len(other.split())
    assert rouge_l(one, other) == pytest.approx(2 * row[-1] / total if total else 0.0)


def test_words_are_those_of_the_package() -> None:
    assert " ".join(words("Don't stop, at 7:30 — naïve Ünder_score!")) == "don t stop at 7 30 na ve nder score"
    assert words("Ελλάδα") == []
    assert SimilarityIndex(0.0, ["Ελλάδα"]).nearest("Ελλάδα") is None


def test_exactly_at_the_threshold_is_not_above_it() -> None:
    # 7 of 10 words each, in order: F is 0.7.
    index = SimilarityIndex(0.7, ["a b c d e f g x y z"])
    assert index.nearest("a b c d e f g p q r") is None
    assert index.nearest("a b c d e f g x q r") == (pytest.approx(0.8), "a b c d e f g x y z")


def test_what_was_added_counts_and_the_earliest_of_equals_is_named() -> None:
    index = SimilarityIndex(0.7)
    assert index.nearest("one two three") is None
    index.add("one two three!")
    index.add("One two three.")
    assert index.nearest("one, two, three") == (1.0, "one two three!")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_named(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="max_similarity"):
        SimilarityIndex(threshold)


def test_real_instructions_are_pruned_to_a_few(data_folder: Path) -> None:
    from kdlightning.generation.records import load_records

    records = load_records(data_folder / "instruct" / "rasbt_instruction_data.jsonl.gz", "test")
    texts = [record["instruction"] for record in records]
    pool, new = texts[:900], texts[900:960]
    index = SimilarityIndex(0.7, pool)
    found = [index.nearest(text) for text in new]
    scored = index.scored
    assert found[:8] == [compared_with_all(0.7, pool, text) for text in new[:8]]
    assert any(found)
    assert any(each is None for each in found)
    assert scored < len(new) * len(pool) / 20
