"""Scored pairs and queries with passages: read, made of classes, tokenized together or apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import ConfigurationError, TextGroups
from kdlightning.data.group_making import groups_of_classes, passages_of_others, scored_pairs_of_classes
from kdlightning.text.tokenizers import train_tokenizer


def written(folder: Path, records: list[dict[str, Any]], name: str = "train") -> str:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def questions(count: int = 24) -> list[dict[str, Any]]:
    return [{"text": f"{'where is' if n % 2 else 'who was'} number {n}", "kind": n % 2} for n in range(count)]


def queries(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"query": f"what is {n}", "positive": [f"it is {n}", "indeed"], "negatives": [f"not {n} at all", "no", "never"]}
        for n in range(count)
    ]


def test_groups_are_texts_side_by_side(tmp_path: Path) -> None:
    data = TextGroups(written(tmp_path, queries()), negatives=2, vocab_size=80, val_split=2, batch_size=4)
    batch = next(iter(data.val_dataloader())).data
    assert "labels" not in batch
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape
    assert batch["input_ids"].shape[:2] == (2, 4)
    number = data.part("val").rows[0].item()
    wanted = [f"what is {number}", f"it is {number} indeed", f"not {number} at all", "no"]
    for ids, mask, text in zip(batch["input_ids"][0], batch["attention_mask"][0], wanted, strict=True):
        assert ids[mask.bool()].tolist() == data.tokenizer(text)["input_ids"]
        assert not ids[~mask.bool()].any()
    assert len(data.part("train")) == 10
    assert data.class_names is None


def test_query_and_passage_read_together(tmp_path: Path) -> None:
    data = TextGroups(written(tmp_path, queries()), together=True, vocab_size=80, val_split=2)
    item = data.part("val")[0]
    number = data.part("val").rows[0].item()
    pair = data.tokenizer(f"what is {number}", f"it is {number} indeed")
    length = len(pair["input_ids"])
    assert item["input_ids"].shape[0] == 2
    assert item["input_ids"][0, :length].tolist() == pair["input_ids"]
    assert item["token_type_ids"][0, :length].tolist() == pair["token_type_ids"]


def test_scored_pairs_have_scores_up_to_one(tmp_path: Path) -> None:
    records = [{"a": f"text {n}", "b": f"other {n}", "points": n % 6} for n in range(12)]
    options: dict[str, Any] = {"query_field": "a", "positive_field": "b", "score_field": "points", "vocab_size": 60}
    path = written(tmp_path, records)
    data = TextGroups(path, best_score=5, val_split=4, eval_batch_size=4, **options)
    batch = next(iter(data.val_dataloader())).data
    assert batch["input_ids"].shape[:2] == (4, 2)
    torch.testing.assert_close(batch["labels"], data.part("val").rows.remainder(6) / 5)
    with pytest.raises(ConfigurationError, match="points goes up to 5, .* best_score=1 .*: set best_score"):
        TextGroups(path, **options).setup()


def test_other_records_passages_are_negatives(tmp_path: Path) -> None:
    path = written(tmp_path, queries())
    data = TextGroups(path, negatives_field=None, negatives=3, vocab_size=80, val_split=2)
    assert data.part("val")[0]["input_ids"].shape[0] == 5
    with pytest.raises(ConfigurationError, match="negatives=12 of 12 passages: lower negatives"):
        TextGroups(path, negatives_field=None, negatives=12).setup()


def test_drawn_passages_are_others_and_a_function_of_the_seed() -> None:
    passages = [f"p{n % 6}" for n in range(9)]
    drawn = passages_of_others(passages, 3, seed=1)
    for own, others in zip(passages, drawn, strict=True):
        assert own not in others
        assert len(set(others)) == 3
    assert drawn == passages_of_others(passages, 3, seed=1)
    assert drawn != passages_of_others(passages, 3, seed=2)


def test_groups_of_classes_hold_one_of_the_class_and_others() -> None:
    texts, classes = [f"t{n}" for n in range(13)], [*(str(n % 3) for n in range(12)), "alone"]
    known = dict(zip(texts, classes, strict=True))
    groups = groups_of_classes(texts, classes, 3, seed=0)
    assert [group[0] for group in groups] == texts[:12]  # the last one's class has no other text
    for query, positive, *negatives in groups:
        assert positive != query
        assert known[positive] == known[query]
        assert len(set(negatives)) == 3
        assert known[query] not in {known[text] for text in negatives}
    pairs, scores = scored_pairs_of_classes(texts, classes, seed=0)
    assert [(known[a] == known[b]) for a, b in pairs] == scores.bool().tolist()
    assert scores.tolist() == [1, 0] * 6 + [0]
    with pytest.raises(ConfigurationError, match="no class of classes_field has two texts"):
        groups_of_classes(["a", "b"], ["0", "1"], 1, seed=0)
    with pytest.raises(ConfigurationError, match="4 negatives of classes other than '0', which have 1 texts"):
        groups_of_classes(["a", "b", "c"], ["0", "0", "1"], 4, seed=0)


def test_no_text_of_a_made_group_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([record["text"] for record in questions()], 80)
    options: dict[str, Any] = {"query_field": "text", "classes_field": "kind", "tokenizer": tokenizer, "val_split": 8}
    data = TextGroups(written(tmp_path, questions()), negatives=2, **options)
    seen = []
    for part in ("train", "val"):
        groups = data.part(part).load(torch.arange(len(data.part(part))), torch.zeros(0))
        seen.append({tuple(row.tolist()) for row in groups["input_ids"].flatten(0, 1)})
    assert len(data.part("train")) == 16
    assert len(data.part("val")) == 8
    width = max(len(row) for row in seen[0])
    padded = [{row + (0,) * (width - len(row)) for row in rows} for rows in seen]
    assert not padded[0] & padded[1]
    scored = TextGroups(written(tmp_path, questions()), score_field="same", **options)
    assert set(scored.part("val").scores.tolist()) == {0.0, 1.0}


def test_batches_of_like_length(tmp_path: Path) -> None:
    data = TextGroups(written(tmp_path, queries()), vocab_size=80, val_split=2, length_bucketing=True, batch_size=4)
    assert sum(len(batch.index) for batch in data.train_dataloader()) == 10
    assert data.part("train").lengths.shape == (10,)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"negatives": -1}, "negatives must be at least 0"),
        ({"negatives": 0, "together": True}, "negatives must be at least 1"),
        ({"score_field": "s", "together": True}, "are TextClassification"),
        ({"best_score": 0}, "best_score must be above 0"),
        ({"text_field": "x"}, "TextGroups has no text_field"),
        ({"negatives": 4}, "record 1 of the train data has 3 texts in 'negatives', and negatives=4: lower"),
        ({"query_field": "querry"}, "has no field 'querry'; did you mean query"),
        ({"score_field": "query"}, "scores are numbers"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        TextGroups(written(tmp_path, queries()), **options).setup()


def test_a_data_set_of_the_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": queries(), "validation": queries(4)}
    whole = datasets.DatasetDict({part: datasets.Dataset.from_list(rows) for part, rows in parts.items()})
    whole.save_to_disk(str(tmp_path / "saved"))
    data = TextGroups(dataset_name=str(tmp_path / "saved"), negatives=2, vocab_size=80)
    assert [len(data.part(part)) for part in ("train", "val")] == [12, 4]
    assert data.part("val")[0]["input_ids"].shape[0] == 4
    with pytest.raises(ConfigurationError, match="no field 'passage'"):
        TextGroups(dataset_name=str(tmp_path / "saved"), positive_field="passage").setup()
