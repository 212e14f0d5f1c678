"""Majorities, ties and measures."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlightning.blackbox.icl.measures import TaskPrediction, macro_f1, measures, rouge_l
from kdlightning.blackbox.icl.votes import likeliest, majority
from kdlightning.errors import MissingExtraError


def said(gold: str, prediction: str | None, task: str = "t", chosen: bool = True) -> TaskPrediction:
    return TaskPrediction(0, "q", prediction or "", prediction, gold, gold == prediction, task, chosen)


def test_the_majority_wins_and_ties_are_all_named() -> None:
    assert majority(["a", "b", "b"]) == ["b"]
    assert majority(["b", "a", "a", "b", "c"]) == ["b", "a"]
    assert majority([]) == []


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_no_candidate_has_more_votes_than_the_named_ones(votes: list[str]) -> None:
    best = majority(votes)
    most = max(votes.count(each) for each in "abc")
    assert set(best) == {each for each in "abc" if votes.count(each) == most}


def test_the_lowest_sum_decides_and_of_equal_ones_the_first() -> None:
    assert likeliest(["a", "b"], [{"a": 1.0, "b": 3.0}, {"a": 2.5, "b": 0.25}]) == "b"
    assert likeliest(["b", "a"], [{"a": 1.0, "b": 1.0}]) == "b"


def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    gold, predicted = list("aabbbccca"), list("abbbacacd")
    rows = [said(one, other) for one, other in zip(gold, predicted, strict=True)]
    assert macro_f1(rows) == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))
    assert macro_f1([said("a", "a"), said("a", None)]) == pytest.approx(2 / 3)
    assert macro_f1([]) == 0.0


def test_choices_and_written_answers_are_measured_apart() -> None:
    rows = [
        said("yes", "yes", "one"), said("no", "yes", "one"), said("a", "a", "two"),
        said("the blue house", "the house", "three", chosen=False), said("x", "x", "three", chosen=False),
    ]  # fmt: skip
    found = measures(rows)
    assert found["acc"] == pytest.approx(2 / 3)
    assert found["most_frequent"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["exact_match"] == 0.5
    assert found["rouge_l"] == pytest.approx((2 * 1 * (2 / 3) / (1 + 2 / 3) + 1) / 2)
    assert set(measures(rows[:3])) == {"acc", "most_frequent", "macro_f1"}
    assert measures([]) == {}


def test_without_its_package_rouge_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdlightning\[rouge\]'"):
        rouge_l([said("x", "x", chosen=False)])
