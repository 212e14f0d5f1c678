"""Raw text for masked language models, and for methods that need no labels."""

from __future__ import annotations

from typing import Any

from kdlightning.data.base import Sources
from kdlightning.data.files import existing
from kdlightning.data.masking import MaskedSequences
from kdlightning.data.text_corpus import TextCorpus
from kdlightning.data.text_parts import check_columns, named_splits
from kdlightning.errors import ConfigurationError
from kdlightning.text.pieces import Pieces
from kdlightning.text.sequences import TokenSequences


class MaskedText(TextCorpus):
    """Raw text with masks, drawn anew for each text in each epoch; see `MaskedSequences`.

    A batch is a dict of `input_ids`, `attention_mask` and `labels` `(B, T)`, padded to its longest text; `labels` hold
    the original of each token that was chosen, -100 elsewhere. With `labels=False` there are neither masks nor labels:
    text for methods that read the networks' insides alone, with the task `Unlabelled`.

    The masks depend on the seed, on the epoch and on the sample's number, and on nothing else: a resumed run sees those
    of the undisturbed one. Validation and test show the same masks each time.

    Args:
        path: a plain-text file or a JSONL file of documents (`.gz` too). It is split by position, since neighbouring
            text is alike: the end is for the test, what comes before it for validation.
        dataset_name: instead of `path`: a data set's name on the hub, or a folder that `save_to_disk` has written; its
            own validation and test splits are taken where it has them.
        dataset_config: its configuration.
        text_field: a document's field, in JSONL and named data sets.
        max_length: tokens of a sample, special ones included.
        pack: fill samples up to `max_length` with text that follows (documents with a separator between them). False
            makes a sample of each line of a plain-text file, and of each document, cut into several where it is longer.
        mask_share: probability that a token is chosen.
        whole_words: choose all pieces of a word together; needs a fast tokenizer.
        labels: False for text without masks and labels.
        tokenizer: a folder or hub name of a transformers tokenizer with a mask token, or such a tokenizer itself (in
            Python); None trains a WordPiece tokenizer on the training part.
        vocab_size: of a trained tokenizer.
        val_split: fraction of the text that is for validation; 0 validates on the test split.
        test_split: fraction of the text that is the test split.
        length_bucketing: training batches of texts of like length, in random order; see `LengthBuckets`.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        text_field: str = "text",
        max_length: int = 128,
        pack: bool = True,
        mask_share: float = 0.15,
        whole_words: bool = False,
        labels: bool = True,
        tokenizer: Any = None,
        vocab_size: int = 4000,
        val_split: float = 0.05,
        test_split: float = 0.05,
        length_bucketing: bool = False,
        **options: Any,
    ) -> None:
        if not 0 < mask_share < 1:
            raise ConfigurationError(f"mask_share must lie between 0 and 1, got {mask_share}")
        if max_length < 8:
            raise ConfigurationError(f"max_length must be at least 8, got {max_length}")
        if path is not None and dataset_name is not None:
            raise ConfigurationError("give either path or dataset_name, not both")
        super().__init__(
            path,
            text_field,
            max_length,
            test_split,
            tokenizer,
            vocab_size=vocab_size,
            val_split=val_split,
            **options,
        )
        self.dataset_name = dataset_name
        self.dataset_config = dataset_config
        self.pack = pack
        self.mask_share = mask_share
        self.whole_words = whole_words
        self.labels = labels
        self.length_bucketing = length_bucketing

    @property
    def input_shape(self) -> None:  # type: ignore[override]
        """None: lengths vary."""
        return None

    def load(self) -> Sources:
        """Reads, splits, tokenizes and cuts."""
        parts, lines = self._read()
        self._take_tokenizer(parts["train"], self.vocab_size, max_length=self.block_size)
        if self.labels and self._tokenizer.mask_token_id is None:
            raise ConfigurationError(
                f"{type(self).__name__}: the tokenizer has no mask token: give that of a masked language model, or "
                "labels=False for text without masks"
            )
        pieces = Pieces(self._tokenizer, self.block_size, words=self.whole_words and self.labels)
        made = {part: self._sequences(pieces, texts, lines) for part, texts in parts.items() if texts}
        return Sources(made["train"], made.get("test"), made.get("val"))

    def _read(self) -> tuple[dict[str, list[str]], bool]:
        """The texts of each part, and whether each is a file whose lines are texts of their own."""
        name = self.dataset_name
        if name is None:
            path = existing(self.path, type(self).__name__, "a text or JSONL file (.gz too); or dataset_name")
            return self._parts_of(path), not path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv"))
        splits = {part: split for part, split in named_splits(name, self.dataset_config).items() if split is not None}
        check_columns(name, splits["train"].column_names, [self.text_field])
        parts = {
            part: [str(text) for text in split[self.text_field] if text is not None] for part, split in splits.items()
        }
        if len(parts) == 1:
            texts = parts["train"]
            first, second = self._cuts(len(texts))
            parts = {"train": texts[:first], "val": texts[first:second], "test": texts[second:]}
        return parts, False

    def _sequences(self, pieces: Pieces, texts: list[str], lines: bool) -> TokenSequences:
        if lines:
            texts = [line for text in texts for line in text.splitlines(keepends=self.pack)]
        columns = pieces.packed(texts, separate=not lines) if self.pack else pieces.apart(texts)
        if not columns["input_ids"]:
            raise ConfigurationError(f"{type(self).__name__}: a part of the text has no words: lower its split")
        tokenizer = self._tokenizer
        padding = {"input_ids": tokenizer.pad_token_id or 0}
        if not self.labels:
            return TokenSequences(columns, padding=padding)
        return MaskedSequences(
            columns,
            mask=tokenizer.mask_token_id,
            special=sorted(tokenizer.all_special_ids),
            vocabulary=len(tokenizer),
            share=self.mask_share,
            padding=padding,
        )
