"""Spans of a sentence, and sentences with something else in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Words of a sentence that are replaced wherever they stand.

    Attributes:
        text: the words.
        places: begin and end of each place in the sentence, in its order.
    """

    text: str
    places: tuple[tuple[int, int], ...]

    def replaced(self, sentence: str, phrase: str) -> str:
        """The sentence with a phrase in the span's place."""
        parts, begin = [], 0
        for start, end in self.places:
            parts += [sentence[begin:start], phrase]
            begin = end
        return "".join([*parts, sentence[begin:]])


def span_of(sentence: str, text: str) -> Span | None:
    """Every place where a text stands in a sentence, not beginning or ending inside a word; None if there is none."""
    if not text.strip():
        return None
    # Parsers also cut before "'s", which begins right behind a letter.
    begin, end = (r"(?<!\w)" if text[0].isalnum() else ""), (r"(?!\w)" if text[-1].isalnum() else "")
    found = re.finditer(f"{begin}{re.escape(text)}{end}", sentence)
    places = tuple(match.span() for match in found)
    return Span(text, places) if places else None


def windows(sentence: str, count: int) -> list[Span]:
    """Neighbouring words as spans: `count` at a time from the first on, the last ones perhaps fewer.

    A sentence that is a single such window has none: nothing of it would stay.
    """
    ends = [match.span() for match in re.finditer(r"\w(?:[^\s]*\w)?", sentence)]
    groups = [ends[first : first + count] for first in range(0, len(ends), count)]
    if len(groups) < 2:
        return []
    return [Span(sentence[group[0][0] : group[-1][1]], ((group[0][0], group[-1][1]),)) for group in groups]
