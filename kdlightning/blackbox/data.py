"""A teacher's text as training data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdlightning.blackbox.base import BlackBoxMethod, Example, Outcome, Problem, problems_from
from kdlightning.blackbox.sequences import DrawnSequences, LabelledSequences, PaddedBatch, TokenPair, tokenize
from kdlightning.blackbox.teacher_text import TeacherText, by_record, check_source
from kdlightning.data.base import Sources
from kdlightning.data.splits import held_out_count, stratified
from kdlightning.data.tokenized import TokenizedData
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import TextGenerator
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import Record, load_records


class BlackBoxData(TokenizedData):
    """Asks a teacher about records by a method, and makes its answers batches.

    Before training (on one process) the teacher is asked about the training and validation records, through the
    store; its answers are filtered, and one line for each, kept or dropped with its reason, goes to
    `<store>.<method>/report.jsonl`; `kdlightning generate` does this alone. The test split is of records
    too: it is never asked about, and serves the method's inference protocol. A training or
    validation record with the prompt of a tested one, or a training one with that of a validated one, is left out, and
    a warning counts them.

    Batches have `input_ids`, `attention_mask` and `labels` `(B, T)`, -100 outside the label, and in methods of several
    tasks `tags` `(B,)`. Validation shows of each record the texts of its first kept answer, which is one row in most
    methods, or its question alone, which counts nowhere.

    A method of several students trains each in a fit of its own, over the same store: `student` says which. They share
    the answers, the report and the tokenizer.

    Args:
        method: the method.
        path: a JSONL, JSON, CSV or TSV file of records, each `.gz` or not; in Python also the records themselves.
        question_field: field of the question; a dotted name looks inside objects.
        gold_field: field of the right answer.
        record_limit: read only the first so many records of `path`; the teacher is asked about no other.
        student: which of the method's students learns; None is its only one.
        generator: the teacher; None takes the records' own text, from `recorded_fields`. `AnswerOnly` needs neither.
        referee: who judges, in methods that ask a referee; recorded text has that in `recorded_fields` too.
        earlier_students: students of an earlier round by name, in methods that ask them while they collect.
        recorded_fields: field of the recorded answer by the method's step, for example
            `{rationale: llm_rationale, answer: llm_answer}`.
        store: the file that keeps every answer of the teacher.
        folder: where the report, products and a trained tokenizer go; `<store>.<method>` beside the store by default.
            Several fits of one method over one store, for example rounds, need a folder each.
        tokenizer: a folder or hub name of the student's tokenizer, or the tokenizer itself (in Python); None trains
            one on the training examples, and keeps it beside the report.
        tokenizer_kind: of a trained one: "bpe" (byte level) or "characters".
        vocab_size: of a trained one.
        max_length: longest example in tokens; longer ones are dropped.
        test_path: the records of the test split, in a file of their own.
        test_split: fraction or count of the records that is the test split, without `test_path`.
        val_split: fraction or count of the records that are left, for validation; 0 validates on the test split, of
            which the loss is unknown (nan) and the protocol's score counts alone, and no best score can be reported.
        batch_size: training examples in a batch.
        progress: whether to show bars and a summary while the teacher is asked.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        method: BlackBoxMethod,
        path: str | list[dict[str, Any]] | None = None,
        question_field: str = "question",
        gold_field: str = "answer",
        record_limit: int | None = None,
        student: str | None = None,
        generator: TextGenerator | None = None,
        referee: TextGenerator | None = None,
        earlier_students: dict[str, TextGenerator] | None = None,
        recorded_fields: dict[str, str] | None = None,
        store: str | None = None,
        folder: str | None = None,
        tokenizer: Any = None,
        tokenizer_kind: Literal["bpe", "characters"] = "bpe",
        vocab_size: int = 2000,
        max_length: int = 512,
        test_path: str | list[dict[str, Any]] | None = None,
        test_split: float = 0.1,
        val_split: float = 0.1,
        batch_size: int = 8,
        progress: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, val_split=val_split, **options)
        if not method.asks_teacher:
            generator, recorded_fields = None, {"answer": gold_field}
        check_source("BlackBoxData", path, store, generator, recorded_fields)
        assert path is not None
        assert store is not None
        if max_length < 2:
            raise ConfigurationError(f"max_length must be at least 2, got {max_length}")
        if record_limit is not None and record_limit < 1:
            raise ConfigurationError(f"record_limit must be at least 1, got {record_limit}")
        self.method = method
        self.student = method.student_named(student) if method.students or student else ""
        self.test_split = test_split
        self.max_length = max_length
        self._fields = (question_field, gold_field)
        self._records = load_records(path, "BlackBoxData")[:record_limit]
        self._test_records = None if test_path is None else load_records(test_path, "test_path")
        if generator is None:
            fields = {**method.context_fields, **(recorded_fields or {})}
            generator = RecordedGenerator(self._records, question_field, fields)
            referee = generator if referee is None else referee
        others = dict(earlier_students or {})
        for name in others if method.students else ():
            method.student_named(name)
        others |= {} if referee is None else {"referee": referee}
        self.problems = self._split()
        asked = {part: self.problems[part] for part in ("train", "val")}
        self.text = TeacherText(
            method,
            asked,
            generator,
            store,
            student=self.student,
            others=others,
            given_tokenizer=tokenizer,
            tokenizer_kind=tokenizer_kind,
            vocab_size=vocab_size,
            max_length=max_length,
            progress=progress,
            given_folder=folder,
            tested=self.problems["test"],
        )
        self._rows: dict[str, list[Problem | None]] = {}
        self._kept: dict[int, list[Outcome]] = {}

    # -- records ---------------------------------------------------------------------------------------------------

    def _split(self) -> dict[str, list[Problem]]:
        """The records of "train", "val" and "test", each in the order of the file."""
        everything = self._read(self._records)
        tested = None if self._test_records is None else self._read(self._test_records)
        own = self.method.split(everything, tested, self.test_split, self.val_split, self.split_seed)
        if own is not None:
            return own
        rows = torch.arange(len(everything))
        test, val = rows[:0], rows[:0]
        if tested is None and self.test_split:
            count = _count("test_split", self.test_split, len(rows))
            test, rows = stratified(len(rows), count, seed=self.split_seed)
        if self.val_split:
            count = _count("val_split", self.val_split, len(rows))
            held, left = stratified(len(rows), count, seed=self.split_seed + 1)
            val, rows = rows[held], rows[left]
        parts = {"train": rows, "val": val, "test": test}
        problems = {name: [everything[row] for row in sorted(part.tolist())] for name, part in parts.items()}
        if tested is not None:
            problems["test"] = tested
        return self._apart(problems)

    def _apart(self, parts: dict[str, list[Problem]]) -> dict[str, list[Problem]]:
        """Without training records that ask what is validated or tested, and validation records that are tested."""
        held: set[str] = set()
        for part in ("test", "val", "train"):
            asked = [(problem, " ".join(self.method.prompt(problem).split())) for problem in parts[part]]
            parts[part] = [problem for problem, prompt in asked if prompt not in held]
            lost = len(asked) - len(parts[part])
            if lost:
                warnings.warn(
                    f"{lost} of {len(asked)} {part} records ask the same as held-out ones, and are left out",
                    stacklevel=3,
                )
            held |= {prompt for _, prompt in asked}
        return parts

    def _read(self, records: Sequence[Record]) -> list[Problem]:
        return problems_from(records, self.method, *self._fields)

    def evaluated(self, stage: str, index: Tensor) -> dict[int, Problem]:
        """The records behind a batch of validation, test or prediction, by the row where each begins.

        Args:
            stage: "val", "test" or "predict".
            index: `Batch.index` `(B,)`.
        """
        _ = self.sources
        rows = self._rows[self._part(stage)]
        return {number: problem for number in index.tolist() if (problem := rows[number]) is not None}

    def kept(self, stage: str, problems: Sequence[Problem]) -> list[Outcome]:
        """What the teacher wrote about records of a stage and was kept; nothing of the test split."""
        found = self._kept if self._part(stage) == "val" else {}
        return [outcome for problem in problems for outcome in found.get(problem.number, [])]

    def _part(self, stage: str) -> str:
        # As the loaders choose: validation without records of its own reads test, prediction without test reads val.
        first, second = ("val", "test") if stage == "val" else ("test", "val")
        return first if self.problems[first] else second

    # -- what the Trainer asks -------------------------------------------------------------------------------------

    @property
    def report(self) -> Path:
        """The JSONL file of what was kept and dropped."""
        return self.text.report

    def prepare_data(self) -> None:
        """See `TeacherText.prepare_for`."""
        self.text.prepare_for(self.trainer)

    def load(self) -> Sources:
        """Reads what was prepared, and tokenises it."""
        if not self.text.is_prepared():
            self.text.prepare()
        if not self.method.students:
            raise ConfigurationError(
                f"{type(self.method).__name__} trains no student: kdlightning generate asks its teacher, and leaves "
                f"what others learn from in {self.text.folder}"
            )
        self._tokenizer = self.text.tokenizer()
        self.collate_fn = PaddedBatch(self._tokenizer.pad_token_id, encoder_decoder=self.method.encoder_decoder)
        outcomes = self.text.outcomes()
        blank = [Example(problem.number, self.method.prompt(problem), "") for problem in self.problems["test"]]
        parts = {
            "train": self.text.examples("train", outcomes),
            "val": self.text.shown("val", outcomes),
            "test": blank,
        }
        self._rows = {part: _beginnings(parts[part], self.problems[part]) for part in ("val", "test")}
        self._kept = by_record([outcome for outcome in outcomes if outcome.kept])
        sets: dict[str, Any] = {name: self._sequences(examples) for name, examples in parts.items() if examples}
        # Of records without a kept answer the right one may be learned, and nobody has looked at its length yet.
        sets["train"] = LabelledSequences([pair for pair in sets["train"].pairs if pair.label])
        if self.method.draws:
            sets["train"] = self._drawn_sequences()
        return Sources(sets["train"], sets.get("test"), sets.get("val"))

    def _drawn_sequences(self) -> DrawnSequences:
        kept = [(problem, self._kept.get(problem.number, [])) for problem in self.problems["train"]]
        return DrawnSequences(kept, self.method, self.student, self._tokenizer, self.max_length)

    def _sequences(self, examples: Sequence[Example]) -> LabelledSequences:
        both, tags = self.method.encoder_decoder, tuple(self.method.tag_weights)
        pairs = [tokenize(each, self._tokenizer, encoder_decoder=both, tags=tags) for each in examples]
        most = self.max_length
        # What the teacher wrote and was kept fits; a text that does not is shown without its label, and counts nowhere.
        return LabelledSequences([pair if len(pair) <= most else _cut(pair, most) for pair in pairs])


def _cut(pair: TokenPair, most: int) -> TokenPair:
    return TokenPair(pair.prompt[:most], (), tag=None if pair.tag is None else -1)


def _beginnings(examples: Sequence[Example], problems: Sequence[Problem]) -> list[Problem | None]:
    """The record of each row that is its record's first."""
    waiting = {problem.number: problem for problem in problems}
    return [waiting.pop(example.record, None) for example in examples]


def _count(option: str, split: float, total: int) -> int:
    try:
        return held_out_count(split, total)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("val_split", option)) from error
