"""Running text for causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kdlightning.data.base import Sources
from kdlightning.data.files import existing, field, read_records, read_text
from kdlightning.data.tokenized import TokenizedData
from kdlightning.errors import ConfigurationError
from kdlightning.text.packing import pack
from kdlightning.text.sequences import TokenBlocks


class TextCorpus(TokenizedData):
    """A plain-text or JSONL file (`.gz` too), cut into blocks of one length.

    The file is split by position, since neighbouring text is alike: the end is the test split, what comes before it
    is for validation, the rest for training. A batch is a dict of `input_ids`, `attention_mask` and `labels`
    `(B, block_size)`; labels are the inputs (the model shifts), -100 where a token does not count.

    Args:
        path: the text file, or a JSONL file of documents.
        text_field: a document's field, in JSONL.
        block_size: tokens in a block.
        test_split: fraction of the text that is the test split.
        tokenizer: a folder or hub name of a transformers tokenizer, or such a tokenizer itself (in Python); None
            trains one on the training part.
        tokenizer_kind: of a trained one: `"bpe"` (byte level) or `"characters"`.
        vocab_size: of a trained one.
        val_split: fraction of the text that is for validation; 0 validates on the test split.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        text_field: str = "text",
        block_size: int = 128,
        test_split: float = 0.05,
        tokenizer: Any = None,
        tokenizer_kind: Literal["bpe", "characters"] = "bpe",
        vocab_size: int = 4000,
        val_split: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(val_split=val_split, **options)
        for name, value in (("test_split", test_split), ("val_split", val_split)):
            if not 0 <= value < 1:
                raise ConfigurationError(f"{name} of running text is a fraction from 0 to below 1, got {value}")
        if val_split + test_split >= 1:
            raise ConfigurationError("val_split and test_split leave nothing to train on")
        if block_size < 2:
            raise ConfigurationError(f"block_size must be at least 2, got {block_size}")
        self.path = path
        self.text_field = text_field
        self.block_size = block_size
        self.test_split = test_split
        self.tokenizer_kind = tokenizer_kind
        self.vocab_size = vocab_size
        self._given_tokenizer = tokenizer

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(block_size,)`."""
        return (self.block_size,)

    def load(self) -> Sources:
        """Reads, splits, tokenizes and packs."""
        path = existing(self.path, type(self).__name__, "a text or JSONL file (.gz too)")
        parts = self._parts_of(path)
        self._take_tokenizer(parts["train"], self.vocab_size, self.tokenizer_kind)
        blocks = {part: self._pack(texts) for part, texts in parts.items() if texts}
        return Sources(blocks["train"], blocks.get("test"), blocks.get("val"))

    def _parts_of(self, path: Path) -> dict[str, list[str]]:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder: give the text file in it")
        if path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv")):
            documents = [str(text) for text in field(read_records(path), self.text_field, type(self).__name__)]
            first, second = self._cuts(len(documents))
            parts = {"train": documents[:first], "val": documents[first:second], "test": documents[second:]}
        else:
            text = read_text(path)
            first, second = (_line_end(text, cut) for cut in self._cuts(len(text)))
            cut = {"train": text[:first], "val": text[first:second], "test": text[second:]}
            parts = {part: [piece] if piece else [] for part, piece in cut.items()}
        if not "".join(parts["train"]).strip():
            raise ConfigurationError(f"{path} has too little text to train on")
        return parts

    def _cuts(self, length: int) -> tuple[int, int]:
        test = round(length * self.test_split)
        return length - test - round(length * self.val_split), length - test

    def _pack(self, texts: list[str]) -> TokenBlocks:
        # verbose=False: a text longer than the model's window is the rule here, not a mistake
        documents = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return TokenBlocks(pack(documents, self.block_size, end=end, pad=self._tokenizer.pad_token_id or 0))


def _line_end(text: str, cut: int) -> int:
    """The next line's beginning, if it is near; a cut then divides no line."""
    end = text.find("\n", max(0, cut - 1), cut + 2000)
    return cut if end < 0 or cut in (0, len(text)) else end + 1
