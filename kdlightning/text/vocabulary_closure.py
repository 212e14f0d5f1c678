"""What a smaller vocabulary needs beside the tokens that a corpus uses, so that it splits the corpus alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def parts_of_bpe_tokens(tokens: Iterable[str], merges: Sequence[Any]) -> set[str]:
    """The symbols that byte-pair encoding goes through on its way to these tokens.

    Merges inside a token happen in the same order whatever stands around it, so its own way is enough. With all of
    them kept, and every merge between kept symbols, the cheapest merge at each step is the one that the whole
    vocabulary takes.
    """
    ranks: dict[tuple[str, str], int] = {}
    for rank, pair in enumerate(merges):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks[left, right] = rank
    found: set[str] = set()
    for token in tokens:
        symbols = list(token)
        if not _merges_to_one(symbols, ranks, found):
            continue  # a special token, which no merge makes
    return found


def _merges_to_one(symbols: list[str], ranks: dict[tuple[str, str], int], found: set[str]) -> bool:
    seen: list[str] = []
    while len(symbols) > 1:
        pairs = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]
        if not pairs:
            return False
        left, right = min(pairs, key=ranks.__getitem__)
        seen += [left, right, left + right]
        merged: list[str] = []
        while symbols:
            first = symbols.pop(0)
            if symbols and (first, symbols[0]) == (left, right):
                first += symbols.pop(0)
            merged.append(first)
        symbols[:] = merged
    found.update(seen)
    return True


def tried_pieces(backend: Any, model: dict[str, Any], texts: Iterable[str]) -> set[str]:
    """The pieces that WordPiece takes of words before it finds that they cannot be split and are unknown.

    Without them a smaller vocabulary might split such a word at another place, and find an end.
    """
    vocabulary, prefix, unknown = model["vocab"], model["continuing_subword_prefix"], model["unk_token"]
    found: set[str] = set()
    words: set[str] = set()
    for text in texts:
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        split = [(normal, (0, 0))] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
        words.update(word for word, _ in split)
    for word in words:
        taken: list[str] = []
        if len(word) <= model["max_input_chars_per_word"] and not _splits(word, vocabulary, prefix, taken):
            found.update(taken)
    return found - {unknown}


def _splits(word: str, vocabulary: dict[str, int], prefix: str, taken: list[str]) -> bool:
    """Greedy longest match; notes the pieces, and says whether it came to the word's end."""
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = (prefix if start else "") + word[start:end]
            if piece in vocabulary:
                taken.append(piece)
                start = end
                break
        else:
            return False
    return True
