"""A teacher's text becomes batches, with a report that adds up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning.blackbox.base import KEPT
from kdlightning.blackbox.cot.fine_tune_cot import NO_TEXT, WRONG, FineTuneCoT
from kdlightning.blackbox.cot.mt_cot import MTCoT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.teacher_text import TOO_LONG
from kdlightning.data.batch import LoadedBatch
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Request
from kdlightning.generation.recorded import RecordedGenerator

FIELDS = {"rationale": "why", "answer": "said"}
Make = Callable[..., BlackBoxData]


@pytest.fixture
def make(sums: Callable[[int], list], tmp_path: Path) -> Make:
    """Makes data of 40 sums: 8 for test, 8 for validation, 24 for training."""

    def data(**options: Any) -> BlackBoxData:
        options = {
            "method": FineTuneCoT(inference_tokens=8),
            "path": sums(40),
            "recorded_fields": FIELDS,
            "store": str(tmp_path / "text.sqlite"),
            "test_split": 0.2,
            "val_split": 8,
            "vocab_size": 300,
            "batch_size": 4,
            "progress": False,
        } | options
        return BlackBoxData(**options)

    return data


def rows(data: BlackBoxData) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.report.read_text().splitlines()]


class Counting(RecordedGenerator):
    """Counts what it is asked; can be told to fail."""

    asked = 0
    broken: tuple[str, ...] = ()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked += len(requests)
        answers = super().generate(requests)
        return [
            Answer.refused(answer.request, "timed out")
            if any(word in answer.request.text for word in self.broken)
            else answer
            for answer in answers
        ]


def test_a_limit_of_records_is_one_of_what_the_teacher_is_asked(make: Make) -> None:
    data = make(record_limit=20)
    assert {part: len(problems) for part, problems in data.problems.items()} == {"train": 8, "val": 8, "test": 4}
    assert max(problem.number for part in data.problems.values() for problem in part) == 19
    with pytest.raises(ConfigurationError, match="record_limit must be at least 1, got 0"):
        make(record_limit=0)


def test_every_asked_record_has_one_line_in_the_report(make: Make) -> None:
    data = make()
    data.prepare_data()
    report = rows(data)
    assert Counter(row["part"] for row in report) == {"train": 24, "val": 8}
    assert len({(row["record"], row["sample"]) for row in report}) == len(report) == 32
    reasons = Counter(row["reason"] for row in report)
    assert sum(reasons.values()) == 32
    assert set(reasons) == {KEPT, WRONG, NO_TEXT}
    for row in report:
        assert row["kept"] == (row["reason"] == KEPT)
        assert row["question"] == data._records[row["record"]]["question"]


def test_test_records_are_never_asked_about(make: Make) -> None:
    data = make()
    data.prepare_data()
    test = {problem.number for problem in data.problems["test"]}
    assert len(test) == 8
    assert not test & {row["record"] for row in rows(data)}
    split = [problem.number for part in ("train", "val", "test") for problem in data.problems[part]]
    assert sorted(split) == list(range(40))


def test_the_split_depends_on_its_seed_alone(make: Make) -> None:
    one, same, other = make(), make(seed=7), make(split_seed=1)
    numbers = [
        [[p.number for p in data.problems[part]] for part in ("train", "val", "test")] for data in (one, same, other)
    ]
    assert numbers[0] == numbers[1] != numbers[2]


def test_training_batches_are_the_kept_examples(make: Make) -> None:
    data = make()
    data.prepare_data()
    kept = [row for row in rows(data) if row["kept"] and row["part"] == "train"]
    seen = []
    for batch in data.train_dataloader():
        assert isinstance(batch, LoadedBatch)
        ids, labels, mask = (batch.data[name] for name in ("input_ids", "labels", "attention_mask"))
        assert ids.shape == labels.shape == mask.shape
        for line, label in zip(ids, labels, strict=True):
            counted = label != -100
            assert torch.equal(line[counted], label[counted])
            text = data.tokenizer.decode(line[: int(counted.nonzero()[-1])])
            seen.append(text)
    expected = [f"{row['question']} ### {row['texts']['rationale']} --> {row['prediction']}" for row in kept]
    assert sorted(seen) == sorted(expected)


def test_validation_has_one_row_a_record_and_test_has_none_counted(make: Make) -> None:
    data = make(eval_batch_size=8)
    data.prepare_data()
    kept = {row["record"] for row in rows(data) if row["kept"]}
    (val,) = list(data.val_dataloader())
    problems = list(data.evaluated("val", val.index).values())
    counted = (val.data["labels"] != -100).any(dim=1).tolist()
    assert counted == [problem.number in kept for problem in problems]
    (test,) = list(data.test_dataloader())
    assert (test.data["labels"] == -100).all()
    assert data.evaluated("test", test.index) == dict(enumerate(data.problems["test"]))
    assert data.evaluated("predict", test.index) == data.evaluated("test", test.index)


def test_prompts_fit_what_the_student_is_asked(make: Make) -> None:
    data = make(eval_batch_size=8)
    (test,) = list(data.test_dataloader())
    (current,) = [next(data.method.infer(data.problems["test"]))]
    for line, mask, request in zip(test.data["input_ids"], test.data["attention_mask"], current.requests, strict=True):
        assert data.tokenizer.decode(line[mask.bool()]) == request.prompt


def test_nothing_is_asked_twice(make: Make, sums: Callable[[int], list]) -> None:
    teacher = Counting(sums(40), "question", FIELDS)
    data = make(recorded_fields=None, generator=teacher)
    data.prepare_data()
    first = teacher.asked
    missing = Counter(row["reason"] for row in rows(data))[NO_TEXT]
    before = data.report.read_text()
    again = make(recorded_fields=None, generator=teacher)
    again.prepare_data()
    # What the teacher has no answer to is a failure, and asked again.
    assert teacher.asked == first + missing
    assert again.report.read_text() == before


def test_failed_requests_are_asked_again_and_the_tokenizer_stays(make: Make, sums: Callable[[int], list]) -> None:
    teacher = Counting(sums(40), "question", FIELDS)
    teacher.broken = ("shop 1",)
    data = make(recorded_fields=None, generator=teacher)
    data.prepare_data()
    failed = {row["record"] for row in rows(data) if row["detail"] == "timed out"}
    assert failed
    vocabulary = data.tokenizer.get_vocab()
    teacher.broken = ()
    again = make(recorded_fields=None, generator=teacher)
    again.prepare_data()
    assert not any(row["detail"] == "timed out" for row in rows(again))
    assert len(again.sources.train) > len(data.sources.train)
    assert again.tokenizer.get_vocab() == vocabulary


def test_setup_alone_prepares_and_sees_changed_options(make: Make) -> None:
    data = make()
    data.setup("fit")
    assert data.report.is_file()
    short = make(max_length=40)
    short.setup("fit")
    reasons = Counter(row["reason"] for row in rows(short))
    assert reasons[TOO_LONG] > 0
    assert sum(reasons.values()) == 32
    assert all(len(pair) <= 40 for pair in short.sources.train.pairs)


def test_several_samples_stay_within_their_record(make: Make, sums: Callable[[int], list]) -> None:
    records = sums(40)
    for record in records:
        record["why"] = [record["why"], "Because."]
        record["said"] = [record["said"], record["answer"]]
    data = make(method=FineTuneCoT(samples=2), path=records)
    data.prepare_data()
    report = rows(data)
    assert len(report) == 64
    assert Counter(row["sample"] for row in report) == {0: 32, 1: 32}
    assert all(row["kept"] for row in report if row["sample"] == 1)
    assert len(data.sources.val) == 8


def test_test_records_of_their_own(make: Make, sums: Callable[[int], list]) -> None:
    data = make(test_path=sums(45)[40:], test_split=0.2)
    assert [len(data.problems[part]) for part in ("train", "val", "test")] == [32, 8, 5]
    assert len(data.part("test")) == 5


def test_no_question_is_in_two_parts(make: Make, sums: Callable[[int], list]) -> None:
    records = sums(20)
    tested, twice = sums(20)[:3], [{**records[5], "question": f"  {records[5]['question']}\n"}]
    with pytest.warns(UserWarning, match="records ask the same as held-out ones, and are left out"):
        data = make(path=records + twice * 9, test_path=tested, val_split=0.3)
    asked = {part: {" ".join(each.question.split()) for each in found} for part, found in data.problems.items()}
    assert len(data.problems["test"]) == 3
    assert not asked["test"] & (asked["val"] | asked["train"])
    assert not asked["val"] & asked["train"]
    data.prepare_data()
    assert len(rows(data)) == len(data.problems["train"]) + len(data.problems["val"])


def test_answers_that_are_too_long_train_nothing(make: Make, sums: Callable[[int], list]) -> None:
    records = sums(40)
    for record in records[::2]:
        record |= {"question": record["question"] + " Why? How? When?" * 30, "said": None}
    method = MTCoT(kind="number", source="cot", answer_step=True)
    data = make(method=method, path=records, max_length=300, tokenizer_kind="characters")
    data.prepare_data()
    pairs = data.part("train").pairs
    assert pairs
    assert all(pair.label and len(pair) <= 300 for pair in pairs)
    assert any(not pair.label for pair in data.part("val").pairs)  # shown, without its label


def test_a_report_without_anything_kept_is_not_taken_for_an_earlier_one(
    make: Make, sums: Callable[[int], list]
) -> None:
    teacher = Counting(sums(40), "question", FIELDS)
    options: dict[str, Any] = {"generator": teacher, "recorded_fields": None}
    data = make(**options)
    data.prepare_data()
    assert data.text.is_prepared()
    Path(data.text.store).unlink()
    teacher.broken = ("apples",)
    with pytest.raises(ConfigurationError, match="nothing to train on"):
        make(**options).prepare_data()
    assert not data.text.is_prepared()
    with pytest.raises(ConfigurationError, match="nothing to train on"):
        make(**options).setup("test")


def test_an_edited_template_or_record_is_prepared_anew(make: Make, sums: Callable[[int], list], tmp_path: Path) -> None:
    template = tmp_path / "rationale.jinja"
    template.write_text("Q: {{ question }}\nA: Think.")
    options: dict[str, Any] = {"method": FineTuneCoT(inference_tokens=8, rationale_prompt=str(template))}
    make(**options).prepare_data()
    assert make(**options).text.is_prepared()
    template.write_text("Q: {{ question }}\nA: Think twice.")
    assert not make(**options).text.is_prepared()
    make(**options).prepare_data()
    records = [record | {"hint": "count"} for record in sums(40)]
    assert not make(**options, path=records).text.is_prepared()


def test_without_validation_records_the_test_split_is_shown(make: Make) -> None:
    data = make(val_split=0)
    assert data.validates_on_test
    (first, *_) = list(data.val_dataloader())
    assert list(data.evaluated("val", first.index).values()) == data.problems["test"][: len(first.index)]


def test_a_tokenizer_of_ones_own_is_used(make: Make, tmp_path: Path) -> None:
    from kdlightning.text.tokenizers import train_tokenizer

    mine = train_tokenizer(["Ann has 1 apple."], 300, "bpe")
    mine.save_pretrained(str(tmp_path / "mine"))
    for given in (mine, str(tmp_path / "mine")):
        data = make(tokenizer=given)
        assert data.tokenizer.get_vocab() == mine.get_vocab()
        assert data.vocabulary_size == len(mine)
    assert not list(data.report.parent.glob("tokenizer-*"))


def test_nothing_kept_is_refused_with_the_reason(make: Make, sums: Callable[[int], list]) -> None:
    others = [{**record, "question": f"Who is {n}?"} for n, record in enumerate(sums(3))]
    data = make(recorded_fields=None, generator=RecordedGenerator(others, "question", FIELDS))
    with pytest.raises(
        ConfigurationError, match="nothing to train on: 0 of 32.*32 the teacher did not answer.*nearest"
    ):
        data.prepare_data()
    assert len(rows(data)) == 32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"path": None}, "needs path"),
        ({"path": "missing.jsonl"}, "missing.jsonl"),
        ({"path": []}, "there are no records"),
        ({"store": None}, "needs store"),
        ({"recorded_fields": None}, "either generator, or recorded_fields"),
        ({"recorded_fields": {"rationale": "whi"}}, "why"),
        ({"question_field": "qestion"}, "question"),
        ({"gold_field": "gold"}, "no field 'gold'"),
        ({"max_length": 1}, "max_length"),
        ({"test_split": 1.5}, "test_split"),
        ({"val_split": 40}, "val_split"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_options_are_one_sentence(make: Make, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_a_step_without_a_field_says_what_to_give(make: Make) -> None:
    data = make(recorded_fields={"rationale": "why"})
    with pytest.raises(
        ConfigurationError, match=r"no field for the step 'answer'; give answer_field as \{answer: FIELD\}"
    ):
        data.prepare_data()
