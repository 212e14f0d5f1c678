"""ROUGE-L, by the package of Google Research."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from kdlightning.errors import MissingExtraError


def require_rouge(who: str) -> None:
    """Raises MissingExtraError if the package is not installed; does not import it, which takes a second."""
    if importlib.util.find_spec("rouge_score") is None:
        raise MissingExtraError("rouge-score", "rouge", who)


def rouge_l(reference: str, text: str) -> float:
    """ROUGE-L's F of two texts: 2·LCS / (m + n) over words of a-z and 0-9 in lower case, not stemmed.

    Texts without such words, in Greek for example, score 0 even with themselves: the package knows no others.
    """
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


def words(text: str) -> list[str]:
    """A text's words as ROUGE counts them."""
    return list(_tokenizer().tokenize(text))


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_tokenizer())


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=False)
