"""Raw text: how it is cut, what is masked, and that masks are functions of (seed, view, index)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning import ConfigurationError, MaskedText, TextClassification
from kdlightning.data.masking import MaskedSequences
from kdlightning.text.pieces import Pieces
from kdlightning.text.tokenizers import train_tokenizer

LINES = [f"the {['quick', 'lazy', 'unbelievable'][i % 3]} fox number {i} jumps over {i * 7} dogs" for i in range(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    return path


def made(path: Path, **options: Any) -> MaskedText:
    return MaskedText(str(path), **({"max_length": 32, "vocab_size": 90, "batch_size": 16, "seed": 1} | options))


def original(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def test_packed_text_is_whole_and_has_its_special_tokens(corpus: Path) -> None:
    data = made(corpus, val_split=0.1, test_split=0.1)
    tokenizer = data.tokenizer
    decoded = []
    for part in ("train", "val", "test"):
        rows = [data.part(part)._columns["input_ids"][start:stop] for start, stop in spans(data.part(part))]
        for row in rows:
            assert (int(row[0]), int(row[-1])) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert {len(row) for row in rows[:-1]} == {32}, "every sample but the last is full"
        decoded += [token for row in rows for token in row[1:-1].tolist()]
    assert decoded == tokenizer("\n".join(LINES), add_special_tokens=False)["input_ids"]
    assert data.input_shape is None


def spans(data: Any) -> list[tuple[int, int]]:
    return [(int(s), int(s + n)) for s, n in zip(data._starts, data._lengths, strict=True)]


def test_each_line_can_be_a_sample_of_its_own(corpus: Path) -> None:
    data = made(corpus, pack=False, labels=False, max_length=12)
    batch = next(iter(data.val_dataloader())).data
    assert set(batch) == {"input_ids", "attention_mask"}
    lengths = [len(data.tokenizer(line)["input_ids"]) for line in LINES]
    assert max(lengths) > 12
    pieces = sum(-(-(length - 2) // 10) for length in lengths)
    assert sum(len(data.part(part)) for part in ("train", "val", "test")) == pieces, "longer lines are cut, not lost"


def test_documents_are_apart_by_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"doc {i}"}) + "\n" for i in range(20)))
    data = made(tmp_path / "a.jsonl", val_split=0.1, test_split=0.1, labels=False)
    assert data.tokenizer.decode(data.part("test")[0]["input_ids"]) == "[CLS] doc 18 [SEP] doc 19 [SEP]"


def test_a_named_data_set_has_its_own_splits_or_is_cut(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"body": LINES})
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "validation": whole, "test": whole}).save_to_disk(str(tmp_path / "three"))
    options = {"text_field": "body", "pack": False, "vocab_size": 200}
    data = MaskedText(dataset_name=str(tmp_path / "one"), **options)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [270, 15, 15]
    data = MaskedText(dataset_name=str(tmp_path / "three"), **options)
    assert [len(data.part(part)) for part in ("train", "val", "test")] == [300, 300, 300]
    with pytest.raises(ConfigurationError, match="has no field 'bodi'; did you mean body"):
        MaskedText(dataset_name=str(tmp_path / "one"), text_field="bodi").setup()


def test_masks_differ_by_epoch_and_sample_and_are_repeatable(corpus: Path) -> None:
    data = made(corpus)
    loader = data.train_dataloader()
    seen = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        rows = {int(n): (b.data, k) for b in loader for k, n in enumerate(b.index)}
        seen.append({n: (batch["input_ids"][k], batch["labels"][k]) for n, (batch, k) in rows.items()})
    first, second, again = seen
    assert all(torch.equal(first[n][0], again[n][0]) and torch.equal(first[n][1], again[n][1]) for n in first)
    moved = [n for n in first if not torch.equal(first[n][1], second[n][1])]
    assert len(moved) == len(first)
    val = [[b.data["labels"] for b in data.val_dataloader()] for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*val, strict=True)), "validation shows the same masks"
    other = made(corpus, seed=2)
    assert not torch.equal(next(iter(other.val_dataloader())).data["labels"], val[0][0])


@given(st.integers(0, 2**62), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.booleans())
@settings(max_examples=40)
def test_masks_are_those_of_a_plain_loop_and_padding_changes_none(seed: int, sizes: list[int], whole: bool) -> None:
    texts = [[1, *range(5, 5 + n), 2] for n in sizes]
    words = [[0, *(k // 3 + 1 for k in range(n)), 0] for n in sizes]
    columns = {"input_ids": texts} | ({"words": words} if whole else {})
    data = MaskedSequences(columns, mask=3, special=[0, 1, 2, 3, 4], vocabulary=30, share=0.5)
    seeds = torch.tensor([(seed + 977 * n) % 2**63 for n in range(len(texts))])
    batch = data.load(torch.arange(len(texts)), seeds)
    for number, text in enumerate(texts):
        alone = data.load(torch.tensor([number]), seeds[number : number + 1])
        for name, value in alone.items():
            assert torch.equal(batch[name][number, : len(text)], value[0])
        shown, labels = alone["input_ids"][0].tolist(), alone["labels"][0].tolist()
        chosen = {}
        for place, (token, seen, label) in enumerate(zip(text, shown, labels, strict=True)):
            assert label in (-100, token)
            assert label != -100 or seen == token, "what is not chosen stays"
            assert token >= 5 or label == -100, "special tokens are never chosen"
            assert seen == token or seen == 3 or 5 <= seen < 30
            if whole and token >= 5:
                assert chosen.setdefault(words[number][place], label != -100) == (label != -100)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


@pytest.mark.parametrize("whole", [False, True])
def test_shares_are_those_of_bert(whole: bool) -> None:
    texts = [[1, *([7] * 120), 2]] * 400
    columns: Any = {"input_ids": texts} | (
        {"words": [[0, *(k // 2 + 1 for k in range(120)), 0]] * 400} if whole else {}
    )
    data = MaskedSequences(columns, mask=3, special=[0, 1, 2, 3, 4], vocabulary=1000)
    batch = data.load(torch.arange(400), torch.arange(400) * 12345 + 7)
    chosen = batch["labels"] != -100
    total = 400 * 120
    assert int(chosen.sum()) / total == pytest.approx(0.15, abs=0.01)
    shown = batch["input_ids"][chosen]
    assert (shown == 3).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (shown == 7).float().mean() == pytest.approx(0.1, abs=0.015)
    others = shown[(shown != 3) & (shown != 7)]
    assert int(others.min()) >= 5
    assert int(others.max()) < 1000
    assert len(others.unique()) > 200


def test_all_pieces_of_a_word_are_chosen_together(corpus: Path) -> None:
    data = made(corpus, whole_words=True, mask_share=0.3)
    batch = next(iter(data.train_dataloader())).data
    tokens, ids, pieces = batch["labels"] != -100, original(batch), 0
    for row in range(len(ids)):
        names = data.tokenizer.convert_ids_to_tokens(ids[row].tolist())
        for place in range(1, ids.shape[1]):
            if names[place].startswith("##") and place > 1:
                pieces += 1
                assert tokens[row, place] == tokens[row, place - 1], names[place - 1 : place + 1]
    assert pieces > 50
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_words_of_cut_texts_are_numbered_from_one() -> None:
    tokenizer = train_tokenizer(LINES, 60)
    columns = Pieces(tokenizer, 9, words=True).packed(LINES[:3], separate=True)
    ids = [token for row in columns["input_ids"] for token in row[1:-1]]
    words = [number for row in columns["words"] for number in row[1:-1]]
    assert len(ids) == len(words)
    for row, numbers in zip(columns["input_ids"], columns["words"], strict=True):
        assert (numbers[0], numbers[1], numbers[-1], len(numbers)) == (0, 1, 0, len(row))
        names = tokenizer.convert_ids_to_tokens(row)
        for place in range(2, len(row) - 1):
            assert (numbers[place] == numbers[place - 1]) == names[place].startswith("##")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_share": 0.0}, "mask_share must lie between 0 and 1, got 0.0"),
        ({"max_length": 4}, "max_length must be at least 8, got 4"),
        ({"dataset_name": "x"}, "either path or dataset_name"),
        ({"path": None}, "MaskedText needs path, a text or JSONL file"),
        ({"val_split": 0.6, "test_split": 0.5}, "leave nothing to train on"),
    ],
)
def test_bad_options_are_refused(corpus: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MaskedText(**({"path": str(corpus)} | options)).setup()


def test_a_tokenizer_without_a_mask_is_refused(corpus: Path) -> None:
    tokenizer = train_tokenizer(LINES, 300, "bpe")
    with pytest.raises(ConfigurationError, match="has no mask token: give that of a masked .* or labels=False"):
        made(corpus, tokenizer=tokenizer).setup()
    batch = next(iter(made(corpus, tokenizer=tokenizer, labels=False, whole_words=True).train_dataloader())).data
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_batch_gathers_its_texts_quickly_whatever_their_length(corpus: Path) -> None:
    data = made(corpus, pack=False, length_bucketing=True)
    loader = data.train_dataloader()
    spread = [int(b.data["attention_mask"].sum(1).max() - b.data["attention_mask"].sum(1).min()) for b in loader]
    plain = made(corpus, pack=False).train_dataloader()
    wide = [int(b.data["attention_mask"].sum(1).max() - b.data["attention_mask"].sum(1).min()) for b in plain]
    assert sum(spread) < sum(wide) / 2
    assert TextClassification(length_bucketing=True).length_bucketing
