"""A pool of texts, asked which of them a new one resembles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from kdlightning.blackbox.instruction.rouge import rouge_l, words
from kdlightning.errors import ConfigurationError

_ROUNDING = 1e-9


class SimilarityIndex:
    """Texts by the words in them, to find the one most like a new text by ROUGE-L, if any is above a threshold.

    The answer is that of a comparison with every text; most comparisons are left out because they cannot matter. With m
    and n words and o words in common (as multisets), F = 2·LCS/(m + n) and LCS ≤ o ≤ n, so F > t takes
    n > t·m/(2 − t) and with it o > t·m/(2 − t): a text that shares none of the rarest words, all but so many, is below
    the threshold, and is not even looked at. Of the others the number of words, then o itself bound F, and what is left
    is scored by ROUGE-L.

    Args:
        threshold: of ROUGE-L's F, from 0 to 1; a text counts as like another one above it.
        texts: the first texts.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigurationError(f"max_similarity is {threshold}: give a number from 0 to 1")
        self.threshold = threshold
        self.scored = 0
        self._texts: list[str] = []
        self._counts: list[Counter[str]] = []
        self._holders: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """One text more."""
        counts = Counter(words(text))
        for word in counts:
            self._holders.setdefault(word, []).append(len(self._texts))
        self._texts.append(text)
        self._counts.append(counts)

    def nearest(self, text: str) -> tuple[float, str] | None:
        """The most similar text above the threshold and its ROUGE-L, the earliest of equals; None if there is none."""
        counts = Counter(words(text))
        best: tuple[float, str] | None = None
        for number in sorted(self._sharing(counts)):
            if self._bound(counts, self._counts[number]) + _ROUNDING < self.threshold:
                continue
            self.scored += 1
            score = rouge_l(self._texts[number], text)
            if score > self.threshold and (best is None or score > best[0]):
                best = score, self._texts[number]
        return best

    def _sharing(self, counts: Counter[str]) -> set[int]:
        """The texts that share one of the rarest words, of which one must be shared."""
        left = counts.total()
        least = math.floor(self.threshold * left / (2 - self.threshold) - _ROUNDING) + 1
        found: set[int] = set()
        for word in sorted(counts, key=lambda word: (len(self._holders.get(word, ())), word)):
            if left < least:
                break
            found.update(self._holders.get(word, ()))
            left -= counts[word]
        return found

    @staticmethod
    def _bound(one: Counter[str], other: Counter[str]) -> float:
        """The most that ROUGE-L of two texts with these words can be."""
        both = one.total() + other.total()
        if not both:
            return 0.0
        shorter = 2 * min(one.total(), other.total()) / both
        return min(shorter, 2 * sum(min(count, other[word]) for word, count in one.items()) / both)
