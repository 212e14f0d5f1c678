"""A classifier's data that a teacher has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kdlightning.blackbox.base import problems_from
from kdlightning.blackbox.cot.disco import DISCO
from kdlightning.blackbox.cot.disco_pairs import FOLDERS
from kdlightning.blackbox.teacher_text import TeacherText, check_source
from kdlightning.data.base import Sources
from kdlightning.data.text_classification import TextClassification
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import TextGenerator
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import load_records

TrainOn = Literal["kept", "all", "shuffled"]


class CounterfactualData(TextClassification):
    """Asks a teacher for counterfactuals by DISCO, and gives a classifier the pairs of originals and counterfactuals.

    Before training (on one process) the teacher is asked about all records, through the store; what it wrote is
    filtered, and one line for each answer, kept or dropped with its reason, goes to `<store>.DISCO/report.jsonl`.
    Beside it are `counterfactuals.jsonl` and the folder `pairs` with train.jsonl, dev.jsonl and test.jsonl, which a
    `TextClassification` with `pair_field: pair` can read as well. No premise is in two of the three.

    Args:
        method: the method, a `DISCO`.
        path: a JSONL, JSON, CSV or TSV file of records, each `.gz` or not; in Python also the records themselves.
        question_field: field that tells the records apart; recorded answers are looked up by it.
        gold_field: field of the record's own label.
        generator: the teacher; None takes the records' own text, from `recorded_fields`.
        recorded_fields: field of the recorded answer by step: `{perturbation: gen_out, score: score}`.
        referee: who scores pairs, a `PairScorer`; without one, recorded text has the scores too.
        store: the file that keeps every answer.
        train_on: "kept" pairs; or, to see what they are worth, "all" answers of the teacher as they came, or originals
            and "shuffled" sentences, which need no teacher (for the label neutral). Validation and test are the same.
        progress: whether to show bars and a summary while the teacher is asked.
        **options: those of `TextClassification`.
    """

    def __init__(
        self,
        method: DISCO,
        path: str | list[dict[str, Any]] | None = None,
        question_field: str = "guid",
        gold_field: str = "label",
        generator: TextGenerator | None = None,
        recorded_fields: dict[str, str] | None = None,
        referee: TextGenerator | None = None,
        store: str | None = None,
        train_on: TrainOn = "kept",
        progress: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(path=None, text_field=list(method.fields), pair_field="pair", **options)
        if train_on not in FOLDERS:
            raise ConfigurationError(f"CounterfactualData: train_on is {' or '.join(FOLDERS)}, not {train_on!r}")
        check_source("CounterfactualData", path, store, generator, recorded_fields)
        assert path is not None
        assert store is not None
        records = load_records(path, "CounterfactualData")
        if generator is None:
            generator = RecordedGenerator(records, question_field, recorded_fields or {})
            referee = generator if referee is None else referee
        self.method = method
        self.train_on: TrainOn = train_on
        problems = {"train": problems_from(records, method, question_field, gold_field)}
        others = {} if referee is None else {"referee": referee}
        self.text = TeacherText(method, problems, generator, store, others=others, progress=progress)

    @property
    def labels_alone(self) -> bool:
        """Whether nothing that a teacher wrote is learned from."""
        return self.train_on == "shuffled"

    @property
    def report(self) -> Path:
        """The JSONL file of what was kept and dropped."""
        return self.text.report

    def prepare_data(self) -> None:
        """See `TeacherText.prepare_for`."""
        self.text.prepare_for(self.trainer)

    def load(self) -> Sources:
        """Reads the pairs, and tokenizes them."""
        folder = self.text.folder / FOLDERS[self.train_on]
        if not self.text.is_prepared() or not folder.is_dir():
            self.text.prepare()
        self.path = str(folder)
        return super().load()
