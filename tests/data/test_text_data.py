"""Labelled texts and running text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning.data.text_classification import TextClassification
from kdlightning.data.text_corpus import TextCorpus
from kdlightning.errors import ConfigurationError

WORDS = ["good film", "a bad film indeed", "what a truly good thing", "bad"]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 20), ("dev", 6), ("test", 4)):
        labels = ["pos", "neg", "pos", "neg"]
        write(
            tmp_path / f"{name}.jsonl",
            [{"text": WORDS[i % 4], "second": f"no {i}", "label": labels[i % 4]} for i in range(count)],
        )
    return tmp_path


def test_folder_of_texts_is_numbered_tokenized_and_padded(folder: Path) -> None:
    data = TextClassification(str(folder), vocab_size=60, eval_batch_size=4)
    assert data.class_names == ["neg", "pos"]
    assert data.num_classes == 2
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [20, 6, 4]
    batch = next(iter(data.test_dataloader())).data
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    for row, text in enumerate(WORDS):
        encoded = data.tokenizer(text)
        length = len(encoded["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == encoded["input_ids"]
        assert (batch["input_ids"][row, length:] == data.tokenizer.pad_token_id).all()
        assert batch["attention_mask"][row].sum() == length
    assert batch["input_ids"].shape[1] == max(len(data.tokenizer(text)["input_ids"]) for text in WORDS)
    assert data.vocabulary_size <= 60
    assert data.part("test")[1]["labels"] == 0


def test_pairs_have_two_segments(folder: Path) -> None:
    data = TextClassification(str(folder), text_field=["text", "second"], vocab_size=60)
    first = data.part("train")[0]
    expected = data.tokenizer("good film", "no 0")
    assert first["input_ids"].tolist() == expected["input_ids"]
    assert first["token_type_ids"].tolist() == expected["token_type_ids"]
    assert set(expected["token_type_ids"]) == {0, 1}


def test_saved_tokenizer_and_length_limit(folder: Path, tmp_path: Path) -> None:
    trained = TextClassification(str(folder), vocab_size=60).tokenizer
    trained.save_pretrained(tmp_path / "saved")
    for given in (str(tmp_path / "saved"), trained):
        data = TextClassification(str(folder), tokenizer=given, max_length=4)
        assert next(iter(data.train_dataloader())).data["input_ids"].shape[1] == 4
        assert data.part("test")[3]["input_ids"].tolist() == trained("bad")["input_ids"]


def test_single_file_holds_validation_out_and_has_no_test(folder: Path) -> None:
    data = TextClassification(str(folder / "train.jsonl"), val_split=4, vocab_size=60)
    assert [len(data.part(part)) for part in ("train", "val")] == [16, 4]
    assert data.part("val").labels.tolist().count(1) == 2
    with pytest.raises(ConfigurationError, match="has no test data"):
        data.test_dataloader()
    given = TextClassification(str(folder / "train.jsonl"), test_path=str(folder / "dev.jsonl"), vocab_size=60)
    assert len(given.part("test")) == 6


def test_numbers_as_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": f"t {i}", "label": [10, 2, 10.0, 2][i % 4]} for i in range(3)] * 2)
    data = TextClassification(str(tmp_path), target="number", val_split=1, vocab_size=60)
    assert data.num_classes is None
    assert data.sources.train.labels.dtype == torch.float32
    write(tmp_path / "train.jsonl", [{"text": f"t {i}", "label": [10, 2][i % 2]} for i in range(8)])
    assert TextClassification(str(tmp_path), vocab_size=60).class_names == ["2", "10"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_field": "txt"}, "record 1 has no field 'txt'; did you mean text"),
        ({"label_field": "lable"}, "record 1 has no field 'lable'; did you mean label"),
        ({"label_names": ["pos", "negative"]}, "the train data have the label 'neg'.*did you mean negative"),
        ({"target": "number"}, "could not convert string to float: 'pos'; target=class takes names"),
        ({"tokenizer": "/absent"}, "there is no folder /absent"),
        ({"vocab_size": 5}, "vocab_size must be at least"),
        ({"dataset_name": "x"}, "either path or dataset_name"),
        ({"text_field": ["a", "b", "c"]}, "two for pairs, got 3"),
        ({"test_path": "absent.csv"}, "there is no absent.csv"),
    ],
)
def test_bad_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextClassification(str(folder), **options).setup()


def test_bad_files_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="TextClassification needs path, a folder with train.jsonl"):
        TextClassification().setup()
    write(folder / "test.jsonl", [{"text": "x", "label": "posi"}])
    with pytest.raises(ConfigurationError, match="the test data have the label 'posi', which .*did you mean pos"):
        TextClassification(str(folder), vocab_size=60).setup()
    (folder / "train.jsonl").write_text("")
    with pytest.raises(ConfigurationError, match="train.jsonl is empty"):
        TextClassification(str(folder)).setup()
    write(folder / "train.jsonl", [{"text": "x", "label": "pos"}])
    with pytest.raises(ConfigurationError, match="labels are all 'pos': two classes are needed"):
        TextClassification(str(folder)).setup()
    (folder / "train.jsonl").rename(folder / "training.jsonl")
    with pytest.raises(ConfigurationError, match="has no train file .*it has dev.jsonl, test.jsonl, training.jsonl"):
        TextClassification(str(folder)).setup()


def test_data_set_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": WORDS * 2, "label": [1, 0] * 4}
    parts = {"train": rows, "validation": rows, "test": {"text": WORDS, "label": [-1] * 4}}
    made = {name: datasets.Dataset.from_dict(part, features=features) for name, part in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    data = TextClassification(dataset_name=str(tmp_path / "d"), vocab_size=60, val_split=2)
    assert data.class_names == ["no", "yes"]
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [6, 2, 8], "hidden test labels are no test"
    assert data.part("test").labels.tolist() == [1, 0] * 4
    with pytest.raises(ConfigurationError, match="has no field 'txt'; did you mean text"):
        TextClassification(dataset_name=str(tmp_path / "d"), text_field="txt").setup()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress("".join(f"line {i} of a text\n" for i in range(200)).encode()))
    return path


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_corpus_is_cut_by_position_into_blocks(corpus: Path, kind: Any) -> None:
    data = TextCorpus(str(corpus), block_size=32, tokenizer_kind=kind, vocab_size=300, val_split=0.1, test_split=0.1)
    texts = {}
    for part in ("train", "val", "test"):
        blocks = data.part(part).blocks
        assert blocks["input_ids"].shape[1] == 32
        assert (blocks["labels"] == blocks["input_ids"]).sum() == blocks["attention_mask"].sum()
        assert (blocks["labels"][blocks["attention_mask"] == 0] == -100).all()
        texts[part] = data.tokenizer.decode(blocks["input_ids"].flatten(), skip_special_tokens=True)
    assert texts["train"] + texts["val"] + texts["test"] == "".join(f"line {i} of a text\n" for i in range(200))
    assert texts["val"].startswith("line "), "no line is divided"
    assert data.num_classes is None
    assert data.input_shape == (32,)
    batch = next(iter(data.train_dataloader()))
    assert batch.data["labels"].shape == (len(batch.index), 32)


def test_documents_are_split_whole_and_ended(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": f"doc {i}"} for i in range(20)])
    data = TextCorpus(str(tmp_path / "a.jsonl"), block_size=8, vocab_size=300, val_split=0.1, test_split=0.1)
    decoded = data.tokenizer.decode(data.part("test").blocks["input_ids"].flatten()).replace("<|pad|>", "")
    assert decoded == "doc 18<|endoftext|>doc 19<|endoftext|>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": 3}, "val_split of running text is a fraction"),
        ({"val_split": 0.5, "test_split": 0.5}, "leave nothing to train on"),
        ({"block_size": 1}, "block_size must be at least 2"),
        ({"path": "absent.txt"}, "there is no absent.txt"),
        ({"path": None}, "TextCorpus needs path"),
        ({"tokenizer_kind": "unigram"}, "wordpiece, bpe or characters, not as 'unigram'"),
        ({"vocab_size": 100}, "vocab_size must be at least 258"),
    ],
)
def test_bad_corpus_options_are_refused(corpus: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextCorpus(**({"path": str(corpus)} | options)).setup()


def test_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigurationError, match="a.txt is empty"):
        TextCorpus(str(tmp_path / "a.txt")).setup()
    with pytest.raises(ConfigurationError, match="is a folder: give the text file in it"):
        TextCorpus(str(tmp_path)).setup()


def test_real_reviews(real_data: Path) -> None:
    data = TextClassification(str(real_data / "sst2"), vocab_size=1000, train_limit=500)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [500, 872, 1821]
    unknown = data.tokenizer.unk_token_id
    ids = next(iter(data.test_dataloader())).data["input_ids"]
    assert (ids == unknown).float().mean() < 0.001


def test_real_questions(real_data: Path) -> None:
    data = TextClassification(str(real_data / "trec"), label_field="coarse", vocab_size=1000)
    assert data.class_names == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    assert len(data.part("test")) == 500


def test_real_names(real_data: Path) -> None:
    data = TextCorpus(str(real_data / "lm" / "names.txt.gz"), block_size=64, tokenizer_kind="characters")
    assert data.vocabulary_size == 27 + 3
