"""Answers in what models write, exactly as they are promised to be read."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdlightning.blackbox.answers import answers_match, canonical_answer, extract_answer
from kdlightning.errors import ConfigurationError

NUMBERS = [
    ("1,000.50", "1000.5"),
    ("$5", "5"),
    ("5%", "5"),
    ("$1,234,567.80", "1234567.8"),
    ("-5", "-5"),
    ("+5", "5"),
    ("−5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("(-5)", "-5"),
    ("x=-2", "-2"),
    ("-0", "0"),
    ("-0.00", "0"),
    ("42.0", "42"),
    ("100", "100"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("007", "7"),
    ("5.", "5"),
    ("5,", "5"),
    ("5!", "5"),
    ("10-5", "5"),
    ("10 - 5", "5"),
    ("- 5", "5"),
    ("a page-5 note", "5"),
    ("1,2", "2"),
    ("1, 2 and 3", "3"),
    ("1,0000", "0"),
    ("12,345 dollars", "12345"),
    ("1.2.3", "3"),
    ("wait...5", "5"),
    ("1e3", "1000"),
    ("2.5e-1", "0.25"),
    ("5km", "5"),
    ("7 * 30 = 210.", "210"),
    ("none", None),
    ("", None),
    ("٣", None),
]
TRIGGERS = ["#### {}", "The answer is {}", "the answer is: {}", "THE ANSWER IS {}.", "Answer: {}", "Final answer:{}"]
TRIGGERS += ["the answer (arabic numerals) is {}", "Therefore, the answer is {}", "####{}", "answer : {}"]


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_numbers_have_one_form(text: str, answer: str | None) -> None:
    assert extract_answer(text, "number") == answer


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize(("form", "answer"), [("42", "42"), ("-7", "-7"), ("$1,000.50", "1000.5"), ("5%", "5")])
def test_the_first_number_after_a_trigger_counts(trigger: str, form: str, answer: str) -> None:
    text = f"There are 3 cats. {trigger.format(form)} because 8 and 9 are wrong"
    assert extract_answer(text, "number") == answer


def test_the_last_trigger_counts() -> None:
    assert extract_answer("The answer is 3. No: the answer is 4 or 5. Bye 6", "number") == "4"
    assert extract_answer("#### 3\nAnswer: 4\n#### 5", "number") == "5"
    assert extract_answer("the answer is answer: 9, not 8", "number") == "9"


def test_without_a_match_after_the_trigger_the_last_in_the_whole_text_counts() -> None:
    assert extract_answer("First 3, then 4. The answer is unknown", "number") == "4"
    assert extract_answer("The answer is 7 and so 8. The answer is unknown", "number") == "8"
    assert extract_answer("(A) or (B)? The answer is hard to say", "choice") == "B"
    assert extract_answer("The answer is unknown", "number") is None


def test_words_that_only_look_like_a_trigger_are_none() -> None:
    assert extract_answer("The answer isn't 5 but 6", "number") == "6"
    assert extract_answer("### 5 is less than 6", "number") == "6"
    assert extract_answer("Answers: 5 and 6", "number") == "6"


def test_a_trigger_may_break_over_lines() -> None:
    assert extract_answer("the answer\nis 5, not 6", "number") == "5"


def test_further_triggers_are_literal() -> None:
    assert extract_answer("2 + 2 --> 4 and not 5", "number") == "5"
    assert extract_answer("2 + 2 --> 4 and not 5", "number", triggers=["-->"]) == "4"
    assert extract_answer("2 .* 3 4", "number", triggers=[".*"]) == "3"


CHOICES = [
    ("(A)", "A"),
    ("A.", "A"),
    ("A)", "A"),
    ("A", "A"),
    ("a", "A"),
    ("(b)", "B"),
    (" c. ", "C"),
    ("The answer is (C), not (D)", "C"),
    ("The answer is C", "C"),
    ("the answer is: e.", "E"),
    ("Answer: D) a dog", "D"),
    ("It is B or C", "C"),
    ("'C'", "C"),
    ("**B**", "B"),
    ("the answer is a good one", None),
    ("F", None),
    ("ABC", None),
    ("B2", None),
    ("D'Arcy", None),
    ("it'd'A", None),
    ("A-level", None),
    ("U.S.A.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), CHOICES)
def test_choices_are_capital_letters(text: str, answer: str | None) -> None:
    assert extract_answer(text, "choice") == answer


def test_only_the_given_letters_are_choices() -> None:
    assert extract_answer("(A) (D) (F)", "choice", choices="ABC") == "A"
    assert extract_answer("(A) (D) (F)", "choice", choices="abcdef") == "F"
    for wrong in ("", "A-C", "12", "ÄÖ"):
        with pytest.raises(ConfigurationError, match="choices is"):
            extract_answer("(A)", "choice", choices=wrong)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        ("NO", "no"),
        ("The answer is no, not yes", "no"),
        ("No one knows. Yes", "yes"),
        ("I know nothing, yesterday", None),
        ("So the answer is yes", "yes"),
        ("#### No", "no"),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text: str, answer: str | None) -> None:
    assert extract_answer(text, "yes_no") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Paris", "Paris"),
        ("The answer is:  New York \nSo it is", "New York"),
        ("#### a b\n#### c d", "c d"),
        ("Answer: x is y.", "x is y."),
        ("The answer is Paris\nThe answer is", "Paris"),
        ("Paris", None),
        ("The answer is\nParis", None),
        ("", None),
    ],
)
def test_text_is_the_rest_of_the_triggers_line(text: str, answer: str | None) -> None:
    assert extract_answer(text, "text") == answer


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="'numbr' is unknown.*number"):
        extract_answer("5", "numbr")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        ("number", "42.0", "42", True),
        ("number", "$1,000", "1000", True),
        ("number", "1000000", "1000000.5", True),
        ("number", "1000000", "1000002", False),
        ("number", "0.3333333", "0.3333334", True),
        ("number", "0.333", "0.334", False),
        ("number", "0", "0.0", True),
        ("number", "0", "0.0000001", False),
        ("number", "5", "-5", False),
        ("number", "x", "x", False),
        ("number", "9 - 3 = 6\n#### 6", "6", True),
        ("choice", "a", "(A)", True),
        ("choice", "A", "B", False),
        ("choice", "G", "(G)", True),
        ("yes_no", "Yes", "yes", True),
        ("yes_no", "yes", "no", False),
        ("yes_no", "maybe", "maybe", False),
        ("text", " New  York", "new york", True),
        ("text", "New York", "York", False),
        ("text", "STRASSE", "straße", True),
    ],
)
def test_matching_compares_canonical_forms(kind: str, one: str, other: str, same: bool) -> None:
    assert answers_match(one, other, kind) is same  # type: ignore[arg-type]
    assert answers_match(other, one, kind) is same  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["number", "choice", "yes_no", "text"])
def test_none_matches_nothing(kind: str) -> None:
    for one, other in ((None, None), (None, "5"), ("A", None)):
        assert answers_match(one, other, kind) is False  # type: ignore[arg-type]


numbers = st.decimals(-(10**12), 10**12, places=4, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(categories=["L", "Zs", "Po"], exclude_characters=".%")).filter(
    lambda text: "answer" not in text.lower() and "#" not in text
)


@given(numbers)
def test_grouped_currency_and_percent_forms_are_one_number(value: Decimal) -> None:
    sign, size = ("-" if value < 0 else ""), abs(value)
    answer = extract_answer(format(value, "f"), "number")
    assert answer is not None
    assert Decimal(answer) == value
    for form in (f"{sign}{size:,f}", f"{sign}${size:,f}", f"{value:f}%", f"so {value:f} in all."):
        assert extract_answer(form, "number") == answer


@given(numbers)
def test_a_canonical_number_is_its_own_answer(value: Decimal) -> None:
    answer = extract_answer(str(value), "number")
    assert extract_answer(str(answer), "number") == answer
    assert answers_match(answer, str(value), "number")
    assert not any(mark in str(answer) for mark in ",$%+eE ")
    assert "." not in str(answer) or not str(answer).endswith(("0", "."))


@given(words, numbers, numbers, st.sampled_from(TRIGGERS), words)
def test_a_number_after_a_trigger_wins_over_all_others(
    before: str, other: Decimal, value: Decimal, trigger: str, after: str
) -> None:
    text = f"{before} {other:f} {trigger.format(format(value, 'f'))} {after} {other:f}"
    assert Decimal(str(extract_answer(text, "number"))) == value


@given(st.text())
def test_any_text_gives_an_answer_of_the_right_form_or_none(text: str) -> None:
    number = extract_answer(text, "number")
    assert number is None or Decimal(number).is_finite()
    assert extract_answer(text, "choice", choices="ABKS") in (None, "A", "B", "K", "S")
    assert extract_answer(text, "yes_no") in (None, "yes", "no")
    words = extract_answer(text, "text")
    assert words is None or (words and words == words.strip() and "\n" not in words and words in text)


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(["number", "choice", "yes_no", "text"]))
def test_matching_is_symmetric_and_canonical_answers_match_themselves(one: str, other: str, kind: str) -> None:
    assert answers_match(one, other, kind) == answers_match(other, one, kind)  # type: ignore[arg-type]
    canonical = canonical_answer(one, kind)  # type: ignore[arg-type]
    assert answers_match(canonical, one, kind) == (canonical is not None)  # type: ignore[arg-type]


@given(st.floats(1e-6, 1e12), st.floats(-3e-6, 3e-6))
def test_numbers_agree_to_a_millionth(value: float, relative: float) -> None:
    assume(abs(abs(relative) - 1e-6) > 1e-8)
    near = value * (1 + relative)
    assert answers_match(f"{value:.20f}", f"{near:.20f}", "number") == (abs(relative) < 1e-6)


def test_huge_numbers_are_numbers() -> None:
    digits = "9" * 5000
    assert extract_answer(digits, "number") == digits
    assert answers_match(digits, digits, "number")
    assert math.isfinite(float(str(extract_answer("1e300", "number"))))


@given(st.sampled_from("ABCDE"), st.sampled_from(["({})", "{}.", "{})", "{}", "The answer is ({}).", "answer: {}"]))
def test_every_form_of_a_choice_is_read(letter: str, form: str) -> None:
    assert extract_answer(form.format(letter), "choice") == letter
