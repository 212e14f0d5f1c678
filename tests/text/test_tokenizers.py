"""Trained tokenizers are a function of the text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.text.tokenizers import load_tokenizer, train_tokenizer

ADJECTIVES = ["small", "äged", "very-large"]
TEXTS = [f"The {b} {a} ran, {a}ing over number {i}!" for i, a in enumerate(["cat", "dog", "owl"]) for b in ADJECTIVES]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "characters"])
def test_saved_tokenizer_is_the_same(kind: Any, tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 320, kind)
    trained.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    for text in TEXTS:
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert loaded.pad_token_id == trained.pad_token_id is not None
    assert len(trained) <= 320
    assert sorted(trained.get_vocab().values()) == list(range(len(trained)))


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_generating_tokenizers_give_the_text_back(kind: Any) -> None:
    trained = train_tokenizer(TEXTS, 320, kind)
    for text in (TEXTS[0], *(["a\n\n  b", " lead"] if kind == "bpe" else [])):
        assert trained.decode(trained(text)["input_ids"]) == text
    assert trained.decode(trained(TEXTS[4])["input_ids"]) == TEXTS[4]
    assert trained.eos_token_id not in trained(TEXTS[0])["input_ids"]
    assert trained.eos_token_id != trained.pad_token_id


def test_wordpiece_frames_sentences_and_knows_its_own_letters() -> None:
    trained = train_tokenizer(TEXTS, 100, "wordpiece")
    encoded = trained("The CAT", "dog")
    tokens = trained.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[0] == "[CLS]"
    assert tokens.count("[SEP]") == 2
    assert "[UNK]" not in trained.tokenize(" ".join(TEXTS))
    assert set(encoded["token_type_ids"]) == {0, 1}
    assert trained.mask_token_id is not None
    assert trained.tokenize("##c") != ["##c"], "pieces are no special tokens"


def test_training_does_not_depend_on_the_process() -> None:
    code = (
        "from kdlightning.text.tokenizers import train_tokenizer\n"
        "texts = [f'{a}{b} {b}{a}' for a in 'abcdefgh' for b in 'stuvwxyz']\n"
        "print([sorted(train_tokenizer(texts, 300, kind).get_vocab().items()) for kind in ('wordpiece', 'bpe')])"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("texts", "vocab_size", "kind", "message"),
    [
        ([], 300, "bpe", "without text"),
        ([" \n"], 300, "bpe", "without text"),
        (["a"], 100, "bpe", "at least 258"),
        (["a"], 3, "characters", "at least 4"),
        (["a"], 8, "wordpiece", "at least 9"),
        (["a"], 300, "unigram", "not as 'unigram'"),
    ],
)
def test_bad_training_is_refused(texts: list[str], vocab_size: int, kind: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        train_tokenizer(texts, vocab_size, kind)


def test_bad_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigurationError, match="there is no folder ./absent"):
        load_tokenizer("./absent")
