"""Finds the answer in what a model wrote, and compares answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Literal, get_args

from kdlightning.errors import ConfigurationError, nearest

AnswerKind = Literal["number", "choice", "yes_no", "text"]
_TOLERANCE = Decimal("1e-6")
_ALL_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TRIGGERS = (r"####", r"\bthe\s+answer\s+(?:\(\s*arabic\s+numerals\s*\)\s+)?is\b[ \t]*:?", r"\banswer\s*:")

# A minus after a word or a bracket, or apart from its number, is a dash or a subtraction: "3-5" ends in 5. Groups of
# three digits are thousands only if none is longer: "1,2" and "1,0000" are two numbers.
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)\]])[-−+])?         # ASCII and typographic minus
        (?:[$€£]\ ?)?
        (?P<inner>(?<=[$€£])[-−+])?
        (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)
        (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?""",
    re.VERBOSE,
)
_LEAD_IN = re.compile(r"\W*(?:so|thus|hence|then|therefore)?\W*", re.IGNORECASE)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def extract_answer(text: str, kind: AnswerKind, choices: str = "ABCDE", *, triggers: Sequence[str] = ()) -> str | None:
    """The answer in a model's text, in one canonical form.

    The *last* trigger counts (`####`, "the answer is", "the answer (arabic numerals) is", "answer:", in any case), and
    after it the first match. Without a trigger, or a match after it, the last match in the whole text is taken.

    Args:
        text: what the model wrote.
        kind: "number" gives a decimal string (`"1,000.50"` is `"1000.5"`, `"$5"` and `"5%"` are `"5"`); "choice" a
            capital letter out of `choices`, from `(A)`, `A.`, `A)` or a lone letter; "yes_no" `"yes"` or `"no"`;
            "text" what follows the trigger to the end of its line.
        choices: the letters that "choice" knows.
        triggers: further literal triggers, for formats with their own separator.

    Returns:
        None if there is no answer.

    Raises:
        ConfigurationError: an unknown kind, or choices that are no letters.
    """
    if kind not in get_args(AnswerKind):
        raise ConfigurationError(f"answer kind {kind!r} is unknown{nearest(str(kind), get_args(AnswerKind))}")
    if kind == "choice" and not (choices.isalpha() and choices.isascii()):
        raise ConfigurationError(f"choices is {choices!r}: give letters, for example ABCDE")
    ends = [match.end() for match in _trigger_pattern(triggers).finditer(text)]
    if kind == "text":
        tails = [text[end:].partition("\n")[0].strip() for end in ends]
        return next((tail for tail in reversed(tails) if tail), None)
    if ends:
        first = next(_matches(text[ends[-1] :], kind, choices.upper()), None)
        if first is not None:
            return first
    found = list(_matches(text, kind, choices.upper()))
    return found[-1] if found else None


def answers_match(prediction: str | None, gold: str | None, kind: AnswerKind) -> bool:
    """Whether two answers are the same, each in any form that `extract_answer` reads.

    Numbers agree to 1e-6 of the larger, texts but for case and whitespace. None, and what holds no answer of this
    kind, matches nothing.
    """
    ours, theirs = canonical_answer(prediction, kind), canonical_answer(gold, kind)
    if ours is None or theirs is None:
        return False
    if kind == "number":
        one, other = Decimal(ours), Decimal(theirs)
        return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))
    return ours == theirs


def split_at_trigger(text: str) -> tuple[str, str]:
    """What stands before the last trigger, without the beginning of its sentence, and the rest.

    "So" alone before it is nothing.

    Without a trigger the rest is empty.
    """
    starts = [match.start() for match in _trigger_pattern(()).finditer(text)]
    if not starts:
        return text.strip(), ""
    before = text[: starts[-1]]
    cut = max((match.end() for match in re.finditer(r"[.!?]\s+|\n", before)), default=0)
    # "####" and "Answer:" begin something new wherever they stand; "the answer is" may have a "So" before it.
    if not cut or text[starts[-1]] not in "tT":
        cut = starts[-1]
    cut = 0 if _LEAD_IN.fullmatch(text[:cut]) else cut
    return text[:cut].strip(), text[cut:].strip()


def canonical_answer(answer: str | None, kind: AnswerKind) -> str | None:
    """An answer in the form in which it is compared; any capital letter is a choice. None if it is none."""
    if answer is None:
        return None
    if kind == "text":
        return " ".join(answer.split()).casefold()
    return extract_answer(answer, kind, choices=_ALL_LETTERS)


def _trigger_pattern(further: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join([*_TRIGGERS, *(re.escape(each) for each in further)]), re.IGNORECASE)


def _matches(text: str, kind: str, choices: str) -> Iterator[str]:
    if kind == "number":
        yield from (_decimal(match) for match in _NUMBER.finditer(text))
    elif kind == "yes_no":
        yield from ("yes" if match.group()[0] in "yY" else "no" for match in _YES_NO.finditer(text))
    else:
        yield from _choices(text, choices)


def _decimal(match: re.Match[str]) -> str:
    number = Decimal(match["digits"].replace(",", "") + (match["exponent"] or ""))
    plain = format(number, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    negative = any(sign and sign[0] in "-−" for sign in (match["sign"], match["inner"]))
    return f"-{plain}" if negative and number else plain


def _choices(text: str, choices: str) -> Iterator[str]:
    either = choices + choices.lower()
    # A small letter counts in brackets, or where there is nothing else.
    alone = re.fullmatch(rf"\W*([{either}])\W*", text)
    if alone:
        yield alone.group(1).upper()
        return
    # Lone: no part of a word, of "it's", of "A-level" or of "U.S.A.".
    lone = rf"(?<!\w)(?<!\w['’])(?<!\b[A-Z]\.)([{choices}])(?!\w|['’-]\w|\.[A-Z]\b)"
    for match in re.finditer(rf"\(\s*([{either}])\s*\)|{lone}", text):
        yield (match.group(1) or match.group(2)).upper()
