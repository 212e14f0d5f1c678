"""Made questions are right, different, and the same for a seed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.answers import extract_answer
from kdlightning.blackbox.symbolic import MAKERS, arithmetic, coin_flips, last_letters, main, names
from kdlightning.errors import ConfigurationError


@given(seed=st.integers(0, 1000), size=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_last_letters_are_those_of_the_names(seed: int, size: int) -> None:
    for record in last_letters(5, seed, size):
        words = record["question"].removeprefix("Put the last letters of ").removesuffix(" together.").split()
        assert len(words) == size
        assert record["answer"] == "".join(word[-1] for word in words)
        assert record["answer"] == extract_answer(record["reasoning"], "text")
        assert all(word in record["reasoning"] for word in words)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_coin_is_heads_up_after_an_even_number_of_flips(seed: int) -> None:
    for record in coin_flips(5, seed):
        flips = record["question"].count(" flips the coin")
        assert record["answer"] == ("yes" if flips % 2 == 0 else "no")
        assert record["socratic"].endswith(f"#### {record['answer']}")


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_sums_are_right_and_never_negative(seed: int) -> None:
    for record in arithmetic(5, seed):
        terms = record["question"].removeprefix("How much is ").removesuffix("?").split()
        value = int(terms[0])
        for sign, number in zip(terms[1::2], terms[2::2], strict=True):
            value += int(number) if sign == "+" else -int(number)
            assert value >= 0
        assert record["answer"] == str(value)
        assert len(record["socratic"].splitlines()) == 4  # three steps and the answer


@pytest.mark.parametrize("task", MAKERS)
def test_questions_differ_and_repeat_for_a_seed(task: str) -> None:
    records = MAKERS[task](300, 3)
    assert len({record["question"] for record in records}) == 300
    assert records == MAKERS[task](300, 3)
    assert records[:100] == MAKERS[task](100, 3)
    assert {r["question"] for r in records} != {r["question"] for r in MAKERS[task](300, 4)}


def test_the_command_prints_a_record_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["last_letters", "--count", "3", "--size", "2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == last_letters(3, size=2)


def test_what_cannot_be_made_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="raise size"):
        last_letters(500, size=1)
    with pytest.raises(ConfigurationError, match="1 to 1280"):
        names(2000)
    with pytest.raises(SystemExit):
        main(["arithmetic", "--count", "0"])
    assert "count is 0" in capsys.readouterr().err
