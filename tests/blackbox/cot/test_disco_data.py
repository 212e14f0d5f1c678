"""From recorded perturbations to a trained classifier; and what the real ones are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlightning.blackbox.base import KEPT, collect, count_reasons, problems_from
from kdlightning.blackbox.cot import disco_filters
from kdlightning.blackbox.cot.disco import DISCO, LOW_SCORE, NO_SCORE
from kdlightning.blackbox.cot.disco_data import CounterfactualData
from kdlightning.cli import main
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request, TextGenerator
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import load_records

FIELDS = {"perturbation": "gen_out", "score": "score"}


def made_records(count: int) -> list[dict[str, Any]]:
    """Every fifth perturbation copies, every seventh scores low, every eleventh has no score."""
    records = []
    for number in range(count):
        premise = f"Person {number // 2} from town {number % 3} sings a song."
        low = 0.1 if number % 7 == 6 else 0.8
        records.append(
            {
                "guid": f"r{number}",
                "premise": premise,
                "hypothesis": f"Person {number // 2} makes music.",
                "label": "entailment",
                "new_label": "neutral",
                "span_prev": "sings a song",
                "gen_out": f"from town {number % 3}" if number % 5 == 4 else f"reads book {number}",
                "score": None if number % 11 == 10 else low,
            }
        )
    return records


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CounterfactualData]:
    def make(records: Any = None, **options: Any) -> CounterfactualData:
        method = options.pop("method", DISCO(span_field="span_prev", held_out=0.2))
        options = {"recorded_fields": FIELDS, "store": str(tmp_path / "store.sqlite"), "vocab_size": 120, **options}
        return CounterfactualData(method, made_records(80) if records is None else records, progress=False, **options)

    return make


def test_kept_pairs_are_a_classifiers_batches(make: Callable[..., CounterfactualData], tmp_path: Path) -> None:
    data = make(batch_size=16)
    data.prepare_data()
    assert data.class_names == ["entailment", "neutral"]
    rows = [json.loads(line) for line in data.report.read_text().splitlines()]
    reasons = {
        number: disco_filters.IN_PREMISE if number % 5 == 4 else NO_SCORE if number % 11 == 10
        else LOW_SCORE if number % 7 == 6 else KEPT
        for number in range(80)
    }  # fmt: skip
    assert [row["reason"] for row in rows] == list(reasons.values())
    folder = tmp_path / "store.DISCO"
    assert len((folder / "counterfactuals.jsonl").read_text().splitlines()) == list(reasons.values()).count(KEPT)
    batch = next(iter(data.train_dataloader())).data
    assert {"input_ids", "token_type_ids", "attention_mask", "labels"} <= set(batch)
    pairs = data.pairs("test")
    assert pairs is not None
    assert pairs.tolist() == [n // 2 for n in range(len(pairs))]
    assert len(data.part("test")) == len(pairs) > 0


def test_unfiltered_training_has_more_of_it_and_the_same_test(make: Callable[..., CounterfactualData]) -> None:
    filtered, everything = make(), make(train_on="all")
    assert len(everything.part("train")) > len(filtered.part("train"))
    for part in ("val", "test"):
        assert everything.part(part).labels.tolist() == filtered.part(part).labels.tolist()


class Scripted(TextGenerator):
    """A referee by script: finds every pair good that has an even number in it."""

    identity = "scripted"  # type: ignore[assignment]

    def generate(self, requests: Any) -> list[Answer]:
        return [Answer(request, {0: Completion(self.score(request))}) for request in requests]

    @staticmethod
    def score(request: Request) -> str:
        sentence = json.loads(request.text)["new"][0]
        return "0.9" if int(sentence.rstrip(".").split()[-1]) % 2 == 0 else "-0.9"


def test_a_referee_takes_the_place_of_recorded_scores(make: Callable[..., CounterfactualData]) -> None:
    data = make(referee=Scripted(), recorded_fields={"perturbation": "gen_out"})
    data.prepare_data()
    kept = [outcome.record for outcome in data.text.outcomes() if outcome.kept]
    assert kept == [number for number in range(80) if number % 5 != 4 and number % 2 == 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"store": None}, "needs store"),
        ({"train_on": "some"}, "train_on is kept or all or shuffled"),
        ({"recorded_fields": None}, "give either generator, or recorded_fields"),
        ({"generator": Scripted()}, "give either generator, or recorded_fields"),
        ({"records": []}, "there are no records"),
        ({"gold_field": "lable"}, "no field 'lable'; did you mean label"),
        ({"method": DISCO(span_field="span_prev", span_words=None, premise_field="premis")}, "no field 'premis'"),
    ],
)
def test_bad_input_is_named(make: Callable[..., CounterfactualData], options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make(**options).prepare_data()


def test_without_a_kept_pair_there_is_nothing_to_train_on(make: Callable[..., CounterfactualData]) -> None:
    with pytest.raises(
        ConfigurationError, match="nothing to train on: 0 of 80 answers kept; dropped: 80 the record has"
    ):
        make(method=DISCO()).prepare_data()


def test_from_records_to_a_tested_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlightning.commands.shipped import shipped

    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(shipped()["blackbox/cot/disco"].read_text())
    sizes = {"vocab_size": 150, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    content["model"]["init_args"]["student"]["init_args"]["config"] |= sizes
    content["data"]["init_args"]["vocab_size"] = 150
    content["trainer"]["max_epochs"] = 2
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    records = made_records(120)
    Path("records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["fit", "-c", "tiny.yaml", "--data.path=records.jsonl", "--then", "test"]) == 0
    (result,) = Path("runs").glob("**/result.json")
    scores = json.loads(result.read_text())
    for split in ("val", "test"):
        values = scores["metrics"][split]["last"]
        assert 0 <= values["consistency"] <= values["acc"] <= 1
        assert -1 <= values["sensitivity"] <= 1
    assert scores["labels_alone"] is False
    assert main(["predict", "-c", "tiny.yaml", "--data.path=records.jsonl"]) == 0
    rows = [json.loads(line) for line in next(Path("runs").glob("**/predictions.jsonl")).read_text().splitlines()]
    assert {"index", "prediction", "probability", "target"} <= set(rows[0])


def test_the_heuristics_drop_nothing_that_the_paper_kept(data_folder: Path) -> None:
    records = load_records(data_folder / "disco_e2n.jsonl.gz", "test")
    method = DISCO(span_field="span_prev")
    dropped = [
        reason
        for row in records
        if (
            reason := method.heuristics.reason(
                row["gen_out"], row["premise"], row["hypothesis"], row["new_premise"], row["hypothesis"], "neutral"
            )
        )
    ]
    assert (len(records), dropped) == (5698, [])
    # What was published as accepted lies above 0.15; the 0.25 of the published code keeps fewer.
    assert all(row["accept"] for row in records)
    assert min(row["score"] for row in records) > 0.15
    assert [sum(row["score"] > least for row in records) for least in (0.15, 0.25, 0.5)] == [5698, 4958, 3233]


def test_real_perturbations_are_filtered(data_folder: Path) -> None:
    records = load_records(data_folder / "disco_e2n.jsonl.gz", "test")[:600]
    method = DISCO(span_field="span_prev")
    teacher = RecordedGenerator(records, "guid", FIELDS)
    problems = problems_from(records, method, "guid", "label")
    outcomes, _ = collect(method, problems, teacher, others={"referee": teacher}, progress=False)
    for outcome, row in zip(outcomes, records, strict=True):
        assert outcome.reason == (KEPT if row["score"] > 0.25 else LOW_SCORE)
        assert outcome.texts["perturbation"] == row["gen_out"]
        if outcome.texts["sentence"] != row["new_premise"]:
            # A span that also stands at the end of a longer word: theirs changes both.
            assert row["premise"].count(row["span_prev"]) > 1
    assert count_reasons(outcomes) == {KEPT: 534, LOW_SCORE: 66}
