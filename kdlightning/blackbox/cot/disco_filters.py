"""Which perturbations are no good by their words alone."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass

from kdlightning.errors import ConfigurationError

EMPTY = "the perturbation is empty"
COPIED_HYPOTHESIS = "the perturbation is the hypothesis"
CONTAINS_HYPOTHESIS = "the perturbation contains the hypothesis"
IN_HYPOTHESIS = "the perturbation is part of the hypothesis"
IN_PREMISE = "the perturbation is part of the premise"
LIKE_HYPOTHESIS = "the perturbation is too like the hypothesis"
LIKE_PREMISE = "the perturbation is too like the premise"
FORBIDDEN = "the perturbation repeats words of the prompt"
NEGATION = "the perturbation only negates"
GAP = "the perturbation has a gap"
NEW_LIKE_OTHER = "the new sentence is too like the other sentence"

FORBIDDEN_PHRASES = (
    *("it is true", "it is false", "[blank]", "[insert]"),
    *("story:", "conclusion:", "context:", "answer:", "statement:"),
)
NEGATIONS = frozenset(
    "no not none nobody nothing neither nowhere never cannot isn't wasn't aren't weren't doesn't don't didn't hasn't "
    "haven't hadn't won't wouldn't shouldn't couldn't can't mustn't".replace("'", "").split()
)
_PUNCTUATION = str.maketrans("", "", string.punctuation + "’‘“”")


@dataclass(frozen=True)
class DiscoHeuristics:
    """The heuristic filter of DISCO: a perturbation must be new, and not give its label away.

    Texts are compared in small letters and without punctuation. Likeness is the Jaccard index of the words, each as
    often as it occurs. The first reason that applies is given, in the order of the checks in public code.

    The thresholds are those of the latest public code (an earlier state has 0.5 for a new premise). It looks for the
    negations and for what contains what as strings of characters, so that "know" negates and "he" is part of "the";
    here they are whole words, and "isn't", which its comparison misses, is one of them.

    Attributes:
        hypothesis_overlap: a perturbation more like the hypothesis than this is dropped.
        premise_overlap: the same for the premise.
        sentence_overlap: a new sentence more like the other, unchanged one than this is dropped.
        contradiction: the label for which a negation is no perturbation.
    """

    hypothesis_overlap: float = 0.6
    premise_overlap: float = 0.35
    sentence_overlap: float = 0.8
    contradiction: str = "contradiction"

    def __post_init__(self) -> None:
        for name in ("hypothesis_overlap", "premise_overlap", "sentence_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"heuristics.{name} is {getattr(self, name)}: give 0 to 1; 1 drops nothing")

    def reason(self, phrase: str, premise: str, hypothesis: str, sentence: str, other: str, label: str) -> str | None:
        """Why a perturbation is dropped; None if it is not.

        Args:
            phrase: what the teacher wrote for the span.
            premise: the record's premise.
            hypothesis: the record's hypothesis.
            sentence: the new sentence, with the phrase in it.
            other: the one of the two sentences that stays as it is.
            label: the wanted label.
        """
        new, first, second = words(phrase), words(premise), words(hypothesis)
        if not new:
            return EMPTY
        checks = {
            COPIED_HYPOTHESIS: new == second,
            CONTAINS_HYPOTHESIS: contains(new, second),
            IN_HYPOTHESIS: contains(second, new),
            IN_PREMISE: contains(first, new),
            LIKE_HYPOTHESIS: jaccard(new, second) > self.hypothesis_overlap,
            LIKE_PREMISE: jaccard(new, first) > self.premise_overlap,
            FORBIDDEN: any(each in phrase.lower() for each in FORBIDDEN_PHRASES),
            NEGATION: label == self.contradiction and not NEGATIONS.isdisjoint(new),
            GAP: "_" in phrase,
            NEW_LIKE_OTHER: jaccard(words(sentence), words(other)) > self.sentence_overlap,
        }
        return next((reason for reason, applies in checks.items() if applies), None)


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return text.lower().translate(_PUNCTUATION).split()


def contains(whole: list[str], part: list[str]) -> bool:
    """Whether the words of `part` stand together in `whole`; no words are part of nothing."""
    return bool(part) and f" {' '.join(part)} " in f" {' '.join(whole)} "


def jaccard(one: list[str], other: list[str]) -> float:
    """Shared words over all words, each as often as it occurs; 1 for two empty texts."""
    ours, theirs = Counter(one), Counter(other)
    either = (ours | theirs).total()
    return (ours & theirs).total() / either if either else 1.0
