"""Texts with a tag for each word: named entities, parts of speech."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from kdlightning.data.base import Sources
from kdlightning.data.columns import COLUMN_SUFFIXES, read_columns
from kdlightning.data.files import RECORD_SUFFIXES, existing, field, read_records
from kdlightning.data.labels import label_numbers, names_of
from kdlightning.data.text_parts import STEMS, check_columns, named_splits, part_file
from kdlightning.data.tokenized import TokenizedData
from kdlightning.errors import ConfigurationError
from kdlightning.text.packing import IGNORED
from kdlightning.text.sequences import TokenSequences

Sentences = tuple[list[list[str]], list[list[Any]]]
"""Words and tags of each text."""


class TaggedText(TokenizedData):
    """Texts with a tag for each word, from JSONL or JSON files, from CoNLL-like columns, or a named data set.

    A batch is a dict of `input_ids`, `attention_mask` and `labels` `(B, T)`, padded to its longest text. A word's tag
    stands at its first piece; later pieces, special tokens and padding have -100.

    Args:
        path: a folder with `train.*` and perhaps `dev.*` (or `val.*`, `validation.*`) and `test.*`; or the training
            file. Records (`.jsonl`, `.json`) have lists of words and tags; other files (`.conll`, `.txt`, `.bio`,
            `.iob2`, `.tsv`, `.conllu`; all of them `.gz` too) have a word a line, its columns apart by white space or
            tabs, and an empty line behind each text.
        dataset_name: instead of `path`: a data set's name on the hub, or a folder that `save_to_disk` has written.
        dataset_config: its configuration.
        val_path: a file instead of the folder's.
        test_path: a file instead of the folder's.
        words_field: the words' field, in records and named data sets.
        tags_field: the tags' field.
        word_column: the word's column in files of columns, from 0; -1 is the last.
        tag_column: the tag's column.
        tag_names: the tags in the order of their numbers; by default as the training data have them, in the order of
            `names_of`.
        tag_all_pieces: tag the later pieces of a word too, with its own tag (I-… behind a B-…, where there is such a
            tag), as the option `label_all_tokens` of transformers' example does.
        tokenizer: a folder or hub name of a transformers tokenizer, or such a tokenizer itself (in Python); a fast one.
            None trains a WordPiece tokenizer on the training split.
        vocab_size: of a trained tokenizer.
        max_length: texts are cut to so many tokens; a warning tells how many words of validation and test that loses.
        length_bucketing: training batches of texts of like length, in random order; see `LengthBuckets`.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        words_field: str = "words",
        tags_field: str = "tags",
        word_column: int = 0,
        tag_column: int = -1,
        tag_names: list[str] | None = None,
        tag_all_pieces: bool = False,
        tokenizer: Any = None,
        vocab_size: int = 4000,
        max_length: int = 128,
        length_bucketing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if path is not None and dataset_name is not None:
            raise ConfigurationError("give either path or dataset_name, not both")
        self.path = path
        self.dataset_name = dataset_name
        self.dataset_config = dataset_config
        self.files = {"val": val_path, "test": test_path}
        self.fields = (words_field, tags_field)
        self.columns = (word_column, tag_column)
        self.tag_names = tag_names
        self.tag_all_pieces = tag_all_pieces
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.length_bucketing = length_bucketing
        self._given_tokenizer = tokenizer

    @property
    def class_names(self) -> list[str] | None:
        """The tags in the order of their numbers."""
        _ = self.sources
        return self.tag_names

    def load(self) -> Sources:
        """Reads, numbers the tags, tokenizes, and lays the tags at the words' first pieces."""
        read = self._from_datasets() if self.dataset_name is not None else self._from_files()
        if self.tag_names is None:
            self.tag_names = names_of(tag for tags in read["train"][1] for tag in tags)
        texts = (" ".join(words) for words in read["train"][0])
        self._take_tokenizer(texts, self.vocab_size, max_length=self.max_length)
        self._check_tokenizer()
        parts = {part: self._encode(sentences, part) for part, sentences in read.items()}
        return Sources(parts["train"], parts.get("test"), parts.get("val"))

    def _check_tokenizer(self) -> None:
        name = type(self._tokenizer).__name__
        if not getattr(self._tokenizer, "is_fast", False):
            raise ConfigurationError(f"{name} is no fast tokenizer, which alone tells of which word a piece is")
        whole = self._tokenizer("a b")["input_ids"]
        try:
            apart = self._tokenizer(["a", "b"], is_split_into_words=True)["input_ids"]
        except (AssertionError, ValueError):  # RoBERTa's own says so itself
            apart = None
        if apart != whole:
            raise ConfigurationError(
                f"{name} joins words that are given apart: load it with add_prefix_space=True, and save it or give it"
            )

    def _encode(self, sentences: Sentences, part: str) -> TokenSequences:
        words, tags = sentences
        encoded = self._tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=self.max_length, padding=False
        )
        names = self.tag_names or []
        later = {n: _inside(n, names) if self.tag_all_pieces else IGNORED for n in range(len(names))}
        labels, lost = [], 0
        for number, row in enumerate(tags):
            classes = label_numbers(row, names, f"the {part} data").tolist()
            found = _at_pieces(encoded.word_ids(number), classes, later)
            labels.append(found)
            lost += len(row) - len(set(encoded.word_ids(number)) - {None})
        if lost and part != "train":
            warnings.warn(
                f"{lost} words of the {part} data lie beyond max_length={self.max_length}, or have no piece, and count "
                "nowhere: raise it if you can",
                stacklevel=2,
            )
        padding = {"input_ids": self._tokenizer.pad_token_id or 0, "labels": IGNORED}
        return TokenSequences({"input_ids": encoded["input_ids"], "labels": labels}, padding=padding)

    def _from_files(self) -> dict[str, Sentences]:
        name = type(self).__name__
        path = existing(self.path, name, "a folder with train.jsonl (.conll) or the training file; or dataset_name")
        suffixes = (*RECORD_SUFFIXES[:4], *COLUMN_SUFFIXES)
        files = {"train": path} if path.is_file() else {p: part_file(path, p, suffixes=suffixes) for p in STEMS}
        for part, given in self.files.items():
            if given is not None:
                files[part] = existing(given, name, f"the {part} file", f"give {part}_path")
        if files["train"] is None:
            here = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise ConfigurationError(f"{path} has no train file ({', '.join(suffixes[::2])}); it has {here}")
        read = {}
        for part, file in files.items():
            if file is None:
                continue
            if file.name.removesuffix(".gz").endswith((".jsonl", ".json")):
                records = read_records(file)
                columns = [field(records, each, name) for each in self.fields]
                read[part] = _checked(columns[0], columns[1], str(file))
            else:
                read[part] = read_columns(file, *self.columns)
        return read

    def _from_datasets(self) -> dict[str, Sentences]:
        name = str(self.dataset_name)
        splits = named_splits(name, self.dataset_config)
        check_columns(name, splits["train"].column_names, self.fields)
        feature = splits["train"].features[self.fields[1]]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        read = {}
        for part, split in splits.items():
            if split is None or not len(split):
                continue
            words, tags = (list(split[each]) for each in self.fields)
            if names is not None:
                tags = [[names[tag] for tag in row] for row in tags]
            read[part] = _checked(words, tags, f"data set {name!r}")
        if names is not None and self.tag_names is None:
            self.tag_names = [str(each) for each in names]
        return read


def _at_pieces(words: Sequence[int | None], classes: Sequence[int], later: dict[int, int]) -> list[int]:
    """The class of each token of a text, given the word that each is a piece of."""
    labels, before = [], None
    for word in words:
        if word is None:
            labels.append(IGNORED)
        else:
            labels.append(classes[word] if word != before else later[classes[word]])
        before = word
    return labels


def _inside(number: int, names: Sequence[str]) -> int:
    """The tag of a word's later pieces."""
    inside = f"I-{names[number][2:]}"
    return names.index(inside) if names[number].startswith("B-") and inside in names else number


def _checked(words: Sequence[Any], tags: Sequence[Any], where: str) -> Sentences:
    """Words and tags as lists of one length each; texts without words are left out."""
    kept_words, kept_tags = [], []
    for number, (ours, theirs) in enumerate(zip(words, tags, strict=True), 1):
        if not isinstance(ours, list) or not isinstance(theirs, list) or len(ours) != len(theirs):
            raise ConfigurationError(f"{where}: record {number} needs a list of words and one of as many tags")
        if ours:
            kept_words.append([str(word) for word in ours])
            kept_tags.append(theirs)
    return kept_words, kept_tags
