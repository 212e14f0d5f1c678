"""Texts with a tag a word: files of every kind, tags at the words' pieces, padding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import ConfigurationError, TaggedText

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def sentences(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Sentences whose names and places can be told from what stands before them."""
    draw, made = random.Random(seed), []
    for number in range(count):
        words, tags = ["today"] * (number % 3), ["O"] * (number % 3)
        for before, kind, length in (("mister", "PER", draw.randint(1, 2)), ("near", "LOC", 1)):
            names = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(3, 9))) for _ in range(length)]
            words += [before, *names]
            tags += ["O", f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        made.append((words, tags))
    return made


def write_columns(path: Path, made: list[tuple[list[str], list[str]]]) -> None:
    blocks = ["\n".join(f"{word} X {tag}" for word, tag in zip(*each, strict=True)) for each in made]
    path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\n")


def write_records(path: Path, made: list[tuple[list[str], list[str]]], fields: tuple[str, str]) -> None:
    path.write_text("".join(json.dumps(dict(zip(fields, each, strict=True))) + "\n" for each in made))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 40), ("dev", 8), ("test", 6)):
        write_columns(tmp_path / f"{name}.conll", sentences(count, seed=count))
    return tmp_path


def at_words(data: TaggedText, batch: dict[str, torch.Tensor], row: int, words: list[str]) -> list[list[int]]:
    """Labels of each word's pieces, by tokenizing one word after the other."""
    labels, place, found = batch["labels"][row].tolist(), 1, []
    assert labels[0] == -100
    for word in words:
        pieces = len(data.tokenizer(word, add_special_tokens=False)["input_ids"])
        found.append(labels[place : place + pieces])
        place += pieces
    assert set(labels[place:]) == {-100}, "behind the words are [SEP] and padding"
    return found


@pytest.mark.parametrize("tag_all_pieces", [False, True])
def test_tags_stand_at_the_first_piece_or_at_all(folder: Path, tag_all_pieces: bool) -> None:
    data = TaggedText(str(folder), vocab_size=60, tag_names=TAGS, tag_all_pieces=tag_all_pieces)
    assert data.class_names == TAGS
    assert data.num_classes == 4
    batch = next(iter(data.test_dataloader())).data
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].shape == batch["input_ids"].shape
    several = 0
    for row, (words, tags) in enumerate(sentences(6, seed=6)):
        for tag, labels in zip(tags, at_words(data, batch, row, words), strict=True):
            later = {"B-PER": "I-PER"}.get(tag, tag)
            expected = [TAGS.index(tag)] + [TAGS.index(later) if tag_all_pieces else -100] * (len(labels) - 1)
            assert labels == expected
            several += len(labels) > 1
    assert several > 5


def test_records_and_columns_and_named_data_sets_say_the_same(folder: Path, tmp_path: Path) -> None:
    made = sentences(40, seed=40)
    records = tmp_path / "records"
    records.mkdir()
    for name, count in (("train", 40), ("dev", 8), ("test", 6)):
        write_records(records / f"{name}.jsonl", sentences(count, seed=count), ("tokens", "ner"))
    first = TaggedText(str(folder), vocab_size=60)
    assert first.class_names == ["B-LOC", "B-PER", "I-PER", "O"]
    others = [TaggedText(str(records), words_field="tokens", tags_field="ner", vocab_size=60)]
    datasets = pytest.importorskip("datasets")
    feature = datasets.List(datasets.ClassLabel(names=first.class_names))
    features = datasets.Features({"words": datasets.List(datasets.Value("string")), "tags": feature})
    rows = {"words": [words for words, _ in made], "tags": [tags for _, tags in made]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "d")
    others.append(TaggedText(dataset_name=str(tmp_path / "d"), vocab_size=60, val_split=8))
    for other in others:
        assert other.class_names == first.class_names
        whole = [data.sources.train.load(torch.arange(40), torch.zeros(40)) for data in (first, other)]
        assert all(torch.equal(value, whole[1][name]) for name, value in whole[0].items())


def test_universal_dependencies_are_read_without_comments_and_joints(tmp_path: Path) -> None:
    lines = [
        "# text = du pain",
        "1-2\tdu\t_\t_",
        "1\tde\tde\tADP",
        "2\tle\tle\tDET",
        "2.1\t_\t_\t_",
        "3\tpain\tpain\tNOUN",
    ]
    (tmp_path / "train.conllu").write_text("\n".join(lines) + "\n\n" + "\n".join(lines[2:4]) + "\n")
    data = TaggedText(str(tmp_path), word_column=1, tag_column=3, vocab_size=40, val_split=0)
    assert data.class_names == ["ADP", "DET", "NOUN"]
    counted = data.part("train")[0]["labels"]
    assert counted[counted != -100].tolist() == [0, 1, 2]
    assert len(data.part("train")) == 2


def test_a_single_file_holds_validation_out(folder: Path) -> None:
    data = TaggedText(str(folder / "train.conll"), test_path=str(folder / "dev.conll"), vocab_size=60, val_split=0.25)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [30, 10, 8]


def test_words_that_are_cut_off_are_told(folder: Path) -> None:
    data = TaggedText(str(folder), vocab_size=60, max_length=10)
    with pytest.warns(UserWarning, match="words of the (val|test) data lie beyond max_length=10"):
        data.setup()
    assert next(iter(data.train_dataloader())).data["labels"].shape[1] == 10


def test_length_bucketing_and_resume(folder: Path) -> None:
    make = lambda: TaggedText(str(folder), vocab_size=60, batch_size=6, seed=2, length_bucketing=True)  # noqa: E731
    loader = make().train_dataloader()
    whole = [batch.index.tolist() for batch in loader]
    assert sorted(sum(whole, [])) == list(range(40))
    part = make().train_dataloader()
    steps = iter(part)
    next(steps)
    next(steps)
    again = make().train_dataloader()
    again.load_state_dict(part.state_dict())
    assert [batch.index.tolist() for batch in again] == whole[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag_column": 5}, "train.conll, line 3 has 3 columns, and the word is in 0, its tag in 5: set word_column"),
        ({"tag_names": ["O", "B-PER", "I-PR", "B-LOC"]}, "the train data have the label 'I-PER'.*did you mean I-PR"),
        ({"dataset_name": "x"}, "either path or dataset_name"),
        ({"val_path": "absent.conll"}, "there is no absent.conll"),
        ({"path": None}, "TaggedText needs path, a folder with train.jsonl"),
    ],
)
def test_bad_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TaggedText(**({"path": str(folder), "vocab_size": 60} | options)).setup()


def test_bad_files_are_refused(folder: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [(["one", "two"], ["O"])], ("words", "tags"))
    with pytest.raises(ConfigurationError, match="record 1 needs a list of words and one of as many tags"):
        TaggedText(str(tmp_path / "a.jsonl")).setup()
    (tmp_path / "b.conll").write_text("\n\n")
    with pytest.raises(ConfigurationError, match="b.conll has no words"):
        TaggedText(str(tmp_path / "b.conll")).setup()
    (folder / "train.conll").rename(folder / "training.conll")
    with pytest.raises(ConfigurationError, match="has no train file .*it has a.jsonl, b.conll"):
        TaggedText(str(folder)).setup()


def test_a_tokenizer_that_joins_words_is_refused(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["mister near today"], 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.save_model(str(folder))
    names = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    for joined in (False, True):
        tokenizer = RobertaTokenizerFast(**names, add_prefix_space=joined)
        data = TaggedText(str(folder), tokenizer=tokenizer, tag_names=TAGS)
        if joined:
            counted = data.part("test")[0]["labels"]
            expected = [TAGS.index(tag) for tag in sentences(6, seed=6)[0][1]]
            assert counted[counted != -100].tolist() == expected
        else:
            with pytest.raises(ConfigurationError, match="joins words .* add_prefix_space=True"):
                data.setup()
