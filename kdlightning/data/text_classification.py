"""Texts, or pairs of texts, with a label each."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from kdlightning.data.base import Sources
from kdlightning.data.files import RECORD_SUFFIXES, existing, field, read_records
from kdlightning.data.labels import label_numbers, names_of
from kdlightning.data.text_parts import STEMS, check_columns, named_splits, part_file
from kdlightning.data.tokenized import TokenizedData
from kdlightning.data.word_replacement import WordReplacement
from kdlightning.errors import ConfigurationError
from kdlightning.text.sequences import TokenSequences

Records = list[dict[str, Any]]


class TextClassification(TokenizedData):
    """Labelled texts from local JSONL, JSON, CSV or TSV files (`.gz` too), or a data set of the `datasets` library.

    A batch is a dict of `input_ids`, `attention_mask` (and `token_type_ids` if the tokenizer has them) `(B, T)`,
    padded to its longest text, and `labels` `(B,)`.

    Args:
        path: a folder with `train.*` and perhaps `dev.*` (or `val.*`, `validation.*`) and `test.*`; or the training
            file. Without validation data, `val_split` of the training data is held out.
        dataset_name: instead of `path`: a data set's name on the hub, or a folder that `save_to_disk` has written.
            Where its test labels are hidden (all -1), its validation split becomes the test split.
        dataset_config: its configuration, `sst2` of `glue`, say.
        val_path: a file instead of the folder's.
        test_path: a file instead of the folder's.
        name_ending: what the folder's files have behind `train`, `dev` and `test`, for example `_paired`.
        text_field: the text's field, or the two fields of a pair.
        label_field: the label's field.
        label_names: the classes in the order of their numbers; by default as the training data have them, numbers
            in their order and names alphabetically.
        target: `"class"`, or `"number"` for regression (float labels).
        tokenizer: a folder or hub name of a transformers tokenizer, or such a tokenizer itself (in Python); None
            trains a WordPiece tokenizer on the training split.
        vocab_size: of a trained tokenizer.
        max_length: texts are cut to so many tokens.
        pair_field: field that an original and its counterfactuals share (the original stands first); `pairs` then tells
            who belongs together, which `PairConsistency` reads. Needs validation data of their own: held-out rows
            would tear pairs apart.
        originals_only: train on the first row of each pair alone.
        length_bucketing: training batches of texts of like length, in random order; see `LengthBuckets`.
        augmentation: copies of the training texts with words replaced, beside the texts themselves, after the split: an
            epoch is longer by so much.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        name_ending: str = "",
        text_field: str | list[str] = "text",
        label_field: str = "label",
        label_names: list[str] | None = None,
        target: Literal["class", "number"] = "class",
        tokenizer: Any = None,
        vocab_size: int = 4000,
        max_length: int = 128,
        pair_field: str | None = None,
        originals_only: bool = False,
        length_bucketing: bool = False,
        augmentation: WordReplacement | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.length_bucketing = length_bucketing
        self.fields = [text_field] if isinstance(text_field, str) else list(text_field)
        if not 1 <= len(self.fields) <= 2:
            raise ConfigurationError(f"text_field takes one field, or two for pairs, got {len(self.fields)}")
        if target not in ("class", "number"):
            raise ConfigurationError(f"target is class or number, got {target!r}")
        if path is not None and dataset_name is not None:
            raise ConfigurationError("give either path or dataset_name, not both")
        if originals_only and pair_field is None:
            raise ConfigurationError("originals_only needs pair_field, which says what is an original")
        self.path = path
        self.dataset_name = dataset_name
        self.dataset_config = dataset_config
        self.val_path = val_path
        self.test_path = test_path
        self.name_ending = name_ending
        self.label_field = label_field
        self.label_names = label_names
        self.target = target
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.pair_field = pair_field
        self.originals_only = originals_only
        self.augmentation = augmentation
        self._to_augment: list[list[str]] | None = None
        self._pairs: dict[str, Tensor] = {}
        self._given_tokenizer = tokenizer

    @property
    def class_names(self) -> list[str] | None:
        """The classes in the order of their numbers; None for numbers."""
        _ = self.sources
        return self.label_names if self.target == "class" else None

    def pairs(self, part: str) -> Tensor | None:
        """For each row of "val" or "test" the number of its pair `(N,)`; the first row of a pair is the original."""
        self.setup()
        return self._pairs.get("test" if part == "val" and self.validates_on_test else part)

    def prepare_data(self) -> None:
        """Has the copies of an augmentation made by one process, before others read them."""
        if self.augmentation is not None and (self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            self.part("train")

    def part(self, name: str) -> Any:
        """The data set of a part; the training part with its copies, if there is an augmentation."""
        part = super().part(name)
        if name == "train" and self.augmentation is not None and self._to_augment is not None:
            rows = part.rows.tolist()
            columns = [[column[row] for row in rows] for column in self._to_augment]
            copies, sources = self.augmentation(columns)
            texts = [[*own, *further] for own, further in zip(columns, copies, strict=True)]
            part = self._encode(texts, torch.cat([part.labels, part.labels[torch.tensor(sources, dtype=torch.int64)]]))
            self._parts["train"], self._to_augment = part, None
        return part

    def load(self) -> Sources:
        """Reads, numbers the labels, and tokenizes."""
        records = self._from_datasets() if self.dataset_name is not None else self._from_files()
        if self.pair_field is not None:
            records = self._paired(records, self.pair_field)
        labels = {part: self._labels(rows, part) for part, rows in records.items()}
        texts = {part: [self._texts(rows, name) for name in self.fields] for part, rows in records.items()}
        self._to_augment = texts["train"]
        self._take_tokenizer(
            (text for column in texts["train"] for text in column), self.vocab_size, max_length=self.max_length
        )
        parts = {part: self._encode(texts[part], labels[part]) for part in records}
        return Sources(
            parts["train"],
            parts.get("test"),
            parts.get("val"),
            labels=labels["train"] if self.target == "class" else None,
        )

    def _paired(self, records: dict[str, Records], name: str) -> dict[str, Records]:
        """Notes who belongs together, and leaves counterfactuals out of training if asked to."""
        if "val" not in records and self.val_split:
            raise ConfigurationError(
                f"{type(self).__name__}: pair_field needs validation data of their own; give val_path"
            )
        for part, rows in records.items():
            numbers: dict[str, int] = {}
            names = [str(value) for value in field(rows, name, type(self).__name__)]
            self._pairs[part] = torch.tensor([numbers.setdefault(each, len(numbers)) for each in names])
        if self.originals_only:
            firsts = {number: row for row, number in reversed(list(enumerate(self._pairs["train"].tolist())))}
            records = records | {"train": [records["train"][row] for row in sorted(firsts.values())]}
        return records

    def _texts(self, records: Records, name: str) -> list[str]:
        return [str(text) for text in field(records, name, type(self).__name__)]

    def _labels(self, records: Records, part: str) -> Tensor:
        values = field(records, self.label_field, type(self).__name__)
        if self.target == "number":
            try:
                return torch.tensor([float(value) for value in values])
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"{self.label_field}: {error}; target=class takes names") from error
        if self.label_names is None:
            self.label_names = names_of(values)
        return label_numbers(values, self.label_names, f"the {part} data")

    def _encode(self, columns: list[list[str]], labels: Tensor) -> TokenSequences:
        encoded = self._tokenizer(*columns, truncation=True, max_length=self.max_length, padding=False)
        kept = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        return TokenSequences(kept, labels, padding={"input_ids": self._tokenizer.pad_token_id or 0})

    def _from_files(self) -> dict[str, Records]:
        name = type(self).__name__
        path = existing(self.path, name, "a folder with train.jsonl (.csv, .tsv) or the training file; or dataset_name")
        files = {"train": path} if path.is_file() else {part: part_file(path, part, self.name_ending) for part in STEMS}
        for part, given in (("val", self.val_path), ("test", self.test_path)):
            if given is not None:
                files[part] = existing(given, name, f"the {part} file", f"give {part}_path")
        if files["train"] is None:
            here = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise ConfigurationError(
                f"{path} has no train{self.name_ending} file ({', '.join(RECORD_SUFFIXES[::2])}); it has {here}"
            )
        return {part: read_records(file) for part, file in files.items() if file is not None}

    def _from_datasets(self) -> dict[str, Records]:
        name = str(self.dataset_name)
        splits = named_splits(name, self.dataset_config)
        columns = splits["train"].column_names
        check_columns(name, columns, (*self.fields, self.label_field))
        names = getattr(splits["train"].features[self.label_field], "names", None)
        if names is not None and self.label_names is None:
            self.label_names = [str(label) for label in names]
        records = {}
        for part, split in splits.items():
            if split is not None and len(split):
                rows = split.to_list()
                hidden = all(row[self.label_field] in (-1, None) for row in rows)
                if names is not None and not hidden:
                    rows = [row | {self.label_field: names[row[self.label_field]]} for row in rows]
                records[part] = [] if hidden else rows
        if records.get("test") == []:
            records.pop("test")
            if "val" in records:
                records["test"] = records.pop("val")
        return records
