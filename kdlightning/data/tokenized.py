"""What data modules of texts share: the tokenizer that they are given, or train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdlightning.data.base import DistillDataModule
from kdlightning.text.tokenizers import TokenizerKind, load_tokenizer, train_tokenizer


class TokenizedData(DistillDataModule):
    """Base of the data modules of texts. Subclasses set `_given_tokenizer` when they are made.

    Args:
        **options: those of `DistillDataModule`.
    """

    _given_tokenizer: Any = None
    _tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer in use; saved with its own `save_pretrained`."""
        _ = self.sources
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of the tokenizer's tokens, special ones included."""
        return len(self.tokenizer)

    def _take_tokenizer(
        self, texts: Iterable[str], vocab_size: int, kind: TokenizerKind = "wordpiece", max_length: int | None = None
    ) -> None:
        """Loads the given tokenizer; without one, trains it on these texts."""
        given = self._given_tokenizer
        if given is None:
            self._tokenizer = train_tokenizer(texts, vocab_size, kind, max_length)
        else:
            self._tokenizer = load_tokenizer(given) if isinstance(given, str) else given
