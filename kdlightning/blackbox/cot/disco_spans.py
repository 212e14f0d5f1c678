"""Spans of a sentence, what stands in their place, and how a teacher is asked for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdlightning.blackbox.templates import render

PromptKind = Literal["completion", "insertion", "chat"]


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


@dataclass(frozen=True)
class DiscoPrompts:
    """Templates of the teacher's prompts, each a file or the name of one that comes with kdlightning.

    All may use `premise`, `hypothesis` (with the blank in its place), `perturbed` ("premise" or "hypothesis"), `label`,
    `word` (how the label is called), `before` and `after` (of the blank in its sentence).

    Attributes:
        instruction: what is to be done; begins a completion, and is the system's message of a chat.
        question: one record, up to where the answer stands; demonstrations have it too.
        insertion: one record with `[insert]` or the teacher's own infilling tokens; alone, without demonstrations.
    """

    instruction: str = "disco/instruction.jinja"
    question: str = "disco/question.jinja"
    insertion: str = "disco/insertion.jinja"

    def request(
        self, kind: PromptKind, values: Mapping[str, Any], demonstrations: Sequence[tuple[Mapping[str, Any], str]]
    ) -> dict[str, Any]:
        """What a request is made with: a prompt, or messages.

        Args:
            kind: "completion", "insertion" or "chat".
            values: for the templates.
            demonstrations: values and answer of each.
        """
        if kind == "insertion":
            return {"prompt": render(self.insertion, **values)}
        instruction, question = render(self.instruction, **values), render(self.question, **values)
        shown = [(render(self.question, **each), answer) for each, answer in demonstrations]
        if kind == "completion":
            blocks = [instruction, *(f"{asked} {answer}" for asked, answer in shown), question]
            return {"prompt": "\n\n".join(blocks)}
        messages = [{"role": "system", "content": instruction}]
        for asked, answer in shown:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": [*messages, {"role": "user", "content": question}]}


def template_values(
    premise: str, hypothesis: str, perturbed: str, span: Span, label: str, word: str, blank: str
) -> dict[str, Any]:
    """What the templates may use; the sentences have the blank in the span's place."""
    sentence = premise if perturbed == "premise" else hypothesis
    with_blank = span.replaced(sentence, blank)
    start, end = span.places[0]
    return {
        "premise": with_blank if perturbed == "premise" else premise,
        "hypothesis": with_blank if perturbed == "hypothesis" else hypothesis,
        "perturbed": perturbed,
        "label": label,
        "word": word,
        "before": sentence[:start],
        "after": sentence[end:],
    }
