"""Texts that belong together: scored pairs, and queries with passages."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from kdlightning.data.base import Sources
from kdlightning.data.files import field
from kdlightning.data.group_making import groups_of_classes, passages_of_others, scored_pairs_of_classes
from kdlightning.data.splits import held_out_count, stratified
from kdlightning.data.text_classification import Records, TextClassification
from kdlightning.errors import ConfigurationError
from kdlightning.text.groups import TokenGroups
from kdlightning.text.sequences import TokenSequences


class TextGroups(TextClassification):
    """Scored pairs, or queries with their passages, from where `TextClassification` reads.

    A batch is a dict of `input_ids`, `attention_mask` (and `token_type_ids`) `(B, G, T)`: G texts a sample, padded to
    the batch's longest one; and of scored pairs `labels` `(B,)`. The tasks `SentenceSimilarity`, `PassageRetrieval` and
    `Reranking` read them. There are three kinds:

    * scored pairs, with `score_field`: the texts of `query_field` and `positive_field`;
    * queries: a query, its positive, and `negatives` negatives;
    * with `classes_field`, records of one text (`query_field`) and a class: either kind is made of them, within each
      part. A positive is another text of the same class, negatives are of other classes; scored pairs (`score_field:
      same_class`) are alternately of one class (1) and of two (0). What is drawn depends on `split_seed` alone.

    Args:
        path: a folder with `train.*` and perhaps `dev.*` and `test.*`, or the training file; see `TextClassification`.
        query_field: field of the first text.
        positive_field: field of the second text; where it holds a list of texts, they are joined.
        negatives_field: field of a record's negatives, one text or a list, of which the first ones are taken. None
            draws the positives of other records.
        negatives: how many negatives a query has.
        score_field: field of a pair's score, instead of negatives.
        best_score: the score of equal texts, by which scores are divided: 5 for STS-B.
        classes_field: see above.
        together: read query and passage as one pair, for cross-encoders: G is then 1 + `negatives`.
        tokenizer: as in `TextClassification`.
        vocab_size: of a trained tokenizer.
        max_length: a text, or a pair that is read together, is cut to so many tokens.
        **options: those of `TextClassification` (`dataset_name`, `test_path`, `length_bucketing`, …) and of
            `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        query_field: str = "query",
        positive_field: str = "positive",
        negatives_field: str | None = "negatives",
        negatives: int = 1,
        score_field: str | None = None,
        best_score: float = 1.0,
        classes_field: str | None = None,
        together: bool = False,
        tokenizer: Any = None,
        vocab_size: int = 4000,
        max_length: int = 128,
        **options: Any,
    ) -> None:
        if negatives < 0 or (negatives == 0 and together):
            raise ConfigurationError(f"TextGroups: negatives must be at least {int(together)}, got {negatives}")
        if score_field is not None and together:
            raise ConfigurationError(
                "TextGroups: scored pairs that are read together are TextClassification(target=number) with two fields"
            )
        if not best_score > 0:
            raise ConfigurationError(f"TextGroups: best_score must be above 0, got {best_score}")
        for name in ("text_field", "label_field", "label_names", "target", "pair_field", "originals_only"):
            if name in options:
                raise ConfigurationError(f"TextGroups has no {name}: name query_field, positive_field or score_field")
        own_negatives = negatives_field if negatives and score_field is None and classes_field is None else None
        # What a record must have besides its texts; the base class asks a named data set for it.
        needed = classes_field or score_field or own_negatives or positive_field
        fields = [query_field] if classes_field is not None else [query_field, positive_field]
        super().__init__(
            path,
            text_field=fields,
            label_field=needed,
            label_names=None,
            target="class",
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            max_length=max_length,
            pair_field=None,
            originals_only=False,
            **options,
        )
        self.negatives_field = own_negatives
        self.negatives = negatives if score_field is None else 0
        self.score_field = score_field
        self.best_score = best_score
        self.classes_field = classes_field
        self.together = together

    @property
    def class_names(self) -> None:  # type: ignore[override]
        """None: groups have no classes."""
        return None

    def load(self) -> Sources:
        """Reads, groups, and tokenizes."""
        records = self._from_datasets() if self.dataset_name is not None else self._from_files()
        if self.classes_field is not None and "val" not in records and self.val_split:
            records |= self._held_out(records["train"])  # before texts are paired, so that none is on both sides
        groups = {part: self._groups(rows, part) for part, rows in records.items()}
        self._take_tokenizer(
            list(dict.fromkeys(chain.from_iterable(groups["train"][0]))), self.vocab_size, max_length=self.max_length
        )
        made = {part: self._tokens(*group) for part, group in groups.items()}
        return Sources(made["train"], made.get("test"), made.get("val"))

    def _held_out(self, rows: Records) -> dict[str, Records]:
        names = self._texts(rows, str(self.classes_field))
        numbers = torch.tensor([sorted(set(names)).index(name) for name in names])
        kept = stratified(numbers, held_out_count(self.val_split, len(rows)), seed=self.split_seed)
        return {
            part: [rows[row] for row in chosen.tolist()] for part, chosen in zip(("val", "train"), kept, strict=True)
        }

    def _groups(self, rows: Records, part: str) -> tuple[list[list[str]], Tensor | None]:
        """The texts of each sample, and the scores."""
        texts = [self._texts(rows, name) for name in self.fields]
        if self.classes_field is not None:
            classes = self._texts(rows, self.classes_field)
            if self.score_field is not None:
                return scored_pairs_of_classes(texts[0], classes, self.split_seed)
            return groups_of_classes(texts[0], classes, self.negatives, self.split_seed), None
        pairs = [list(pair) for pair in zip(*texts, strict=True)]
        if self.score_field is not None:
            return pairs, self._scores(rows)
        if self.negatives and self.negatives_field is None:
            others = passages_of_others(texts[1], self.negatives, self.split_seed)
            return [pair + more for pair, more in zip(pairs, others, strict=True)], None
        if self.negatives:
            return [
                pair + self._negatives(row, n, part) for n, (pair, row) in enumerate(zip(pairs, rows, strict=True))
            ], None
        return pairs, None

    def _texts(self, records: Records, name: str) -> list[str]:
        values = field(records, name, type(self).__name__)
        return [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]

    def _negatives(self, row: dict[str, Any], number: int, part: str) -> list[str]:
        value = row.get(str(self.negatives_field))
        found = [str(text) for text in (value if isinstance(value, list) else [] if value is None else [value])]
        if len(found) < self.negatives:
            raise ConfigurationError(
                f"TextGroups: record {number + 1} of the {part} data has {len(found)} texts in "
                f"{self.negatives_field!r}, and negatives={self.negatives}: lower negatives, or set negatives_field to "
                "null to draw other records' passages"
            )
        return found[: self.negatives]

    def _scores(self, rows: Records) -> Tensor:
        values = field(rows, str(self.score_field), type(self).__name__)
        try:
            scores = torch.tensor([float(value) for value in values]) / self.best_score
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"TextGroups: {self.score_field}: {error}; scores are numbers") from error
        if not bool(((scores >= -1) & (scores <= 1)).all()):
            most = float(scores.abs().max() * self.best_score)
            raise ConfigurationError(
                f"TextGroups: {self.score_field} goes up to {most:g}, and scores over best_score={self.best_score:g} "
                "are to lie from -1 to 1: set best_score"
            )
        return scores

    def _tokens(self, groups: list[list[str]], scores: Tensor | None) -> TokenGroups:
        size = len(groups[0]) - self.together
        if self.together:
            columns = [[group[0] for group in groups for _ in range(size)], [t for group in groups for t in group[1:]]]
        else:
            columns = [list(chain.from_iterable(groups))]
        encoded = self._tokenizer(*columns, truncation=True, max_length=self.max_length, padding=False)
        kept = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        padding = {"input_ids": self._tokenizer.pad_token_id or 0}
        return TokenGroups(TokenSequences(kept, padding=padding), size, scores)
