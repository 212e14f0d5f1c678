"""Texts as samples of at most so many tokens, with the special ones around each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kdlightning.errors import ConfigurationError

Columns = dict[str, list[list[int]]]


class Pieces:
    """Cuts texts into samples.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: most tokens of a sample, special ones included.
        words: give `words` too: for each token the number of its word in the sample (0 for special ones).
    """

    def __init__(self, tokenizer: Any, max_length: int, *, words: bool = False) -> None:
        if words and not tokenizer.is_fast:
            raise ConfigurationError(f"{type(tokenizer).__name__} is no fast tokenizer, which whole_words needs")
        self.tokenizer = tokenizer
        self.words = words
        self.before, self.after = _special(tokenizer)
        self.most = max_length - len(self.before) - len(self.after)
        if self.most < 1:
            raise ConfigurationError(f"max_length {max_length} leaves no room beside the special tokens: raise it")

    def apart(self, texts: Sequence[str]) -> Columns:
        """Each text by itself; a longer one as several samples, an empty one as none."""
        columns = self._columns()
        for ids, words in self._tokens(texts):
            self._add(columns, ids, words)
        return columns

    def packed(self, texts: Sequence[str], *, separate: bool) -> Columns:
        """All texts end to end, cut into samples of full length but for the last.

        Args:
            texts: documents, or lines of one.
            separate: put the tokenizer's separator (or end) token between them.
        """
        token = self.tokenizer.sep_token_id
        token = self.tokenizer.eos_token_id if token is None else token
        between = [] if token is None or not separate else [token]
        all_ids: list[int] = []
        all_words: list[int] = []
        for ids, words in self._tokens(texts):
            if ids and all_ids and between:
                all_ids += between
                all_words.append(_next(all_words))
            start = _next(all_words)
            all_ids += ids
            all_words += [start + word for word in words]
        columns = self._columns()
        self._add(columns, all_ids, all_words)
        return columns

    def _columns(self) -> Columns:
        return {"input_ids": [], "words": []} if self.words else {"input_ids": []}

    def _add(self, columns: Columns, ids: list[int], words: list[int]) -> None:
        for start in range(0, len(ids), self.most):
            columns["input_ids"].append([*self.before, *ids[start : start + self.most], *self.after])
            if self.words:
                part = words[start : start + self.most]
                own = [word - part[0] + 1 for word in part]  # a word's number is that in its sample
                columns["words"].append([0] * len(self.before) + own + [0] * len(self.after))

    def _tokens(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokens of each text and, if wanted, the number of the word that each belongs to."""
        for start in range(0, len(texts), 1000):
            # verbose=False: a text longer than the model's window is the rule here, not a mistake
            found = self.tokenizer(
                list(texts[start : start + 1000]), add_special_tokens=False, verbose=False, return_attention_mask=False
            )
            for number, ids in enumerate(found["input_ids"]):
                yield ids, _filled(found.word_ids(number)) if self.words else []


def _next(words: Sequence[int]) -> int:
    return words[-1] + 1 if words else 0


def _filled(words: Sequence[int | None]) -> list[int]:
    """Numbers of words that only grow; a token outside of all words is one by itself."""
    filled: list[int] = []
    before: int | None = None
    for place, word in enumerate(words):
        same = place > 0 and word is not None and word == before
        filled.append(filled[-1] if same else len(filled) and filled[-1] + 1)
        before = word
    return filled


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []
