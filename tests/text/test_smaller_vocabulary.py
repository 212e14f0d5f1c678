"""Cut tokenizers split their corpus as the whole ones do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizerFast, RobertaTokenizerFast

from kdlightning import CutVocabulary, cut_tokenizer, student_from_teacher, transformers_model
from kdlightning.errors import ConfigurationError
from kdlightning.text.smaller_vocabulary import read_token_map
from kdlightning.text.tokenizers import train_tokenizer

SENTENCES = [
    "A stirring , funny and finally transporting film .",
    "the same old story , told again and again , unkindly",
    "re-imagining beauty and the beast ; it is its own reward",
    "naïve café 42 %",
]
MORE = ["no movement , no yuks , not much of anything", "one long string of cliches", "visually stunning storytelling"]


def wordpiece() -> Any:
    trained = train_tokenizer([*SENTENCES, *MORE] * 3, 300)
    words = trained.get_vocab()
    return BertTokenizerFast(vocab=words)


def byte_pairs() -> Any:
    model = json.loads(train_tokenizer([*SENTENCES, *MORE] * 3, 400, "bpe").backend_tokenizer.to_str())["model"]
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for token in model["vocab"]:
        if not token.startswith("<|"):
            words[token] = len(words)
    words["<mask>"] = len(words)
    return RobertaTokenizerFast(vocab=words, merges=[tuple(pair) for pair in model["merges"]])


WHOLE = {"wordpiece": wordpiece(), "bpe": byte_pairs()}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_corpus_is_split_alike(kind: str, tmp_path: Path) -> None:
    whole = WHOLE[kind]
    kept = cut_tokenizer(whole, SENTENCES[:2], tmp_path / "small")
    smaller = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert type(smaller) is type(whole)
    assert len(smaller) == len(kept) < len(whole)
    assert read_token_map(tmp_path / "small") == kept == sorted(kept)
    for texts in ((SENTENCES[0],), (SENTENCES[1],), tuple(SENTENCES[:2])):
        ours, theirs = smaller(*texts), whole(*texts)
        assert [kept[number] for number in ours["input_ids"]] == theirs["input_ids"]
        assert ours.get("token_type_ids") == theirs.get("token_type_ids")
    for name in ("pad", "cls", "sep", "mask", "unk"):
        assert kept[getattr(smaller, f"{name}_token_id")] == getattr(whole, f"{name}_token_id")
    other = smaller(MORE[0])["input_ids"]
    assert smaller.decode(other, skip_special_tokens=True).strip()
    if kind == "bpe":
        assert smaller.decode(other, skip_special_tokens=True) == MORE[0], "bytes are never unknown"


@given(
    texts=st.lists(st.text("ab cdéz☃,", min_size=1, max_size=12), min_size=1, max_size=4),
    kind=st.sampled_from([*WHOLE]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_corpus_is_split_alike(texts: list[str], kind: str, tmp_path: Path) -> None:
    whole = WHOLE[kind]
    texts = [*texts, "a"]
    kept = cut_tokenizer(whole, texts, tmp_path / "small")
    smaller = AutoTokenizer.from_pretrained(tmp_path / "small")
    for text in texts:
        assert [kept[number] for number in smaller(text)["input_ids"]] == whole(text)["input_ids"]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_the_student_answers_as_the_teacher_on_its_corpus(kind: str, head: str, tmp_path: Path) -> None:
    whole = WHOLE[kind]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    name = "bert" if kind == "wordpiece" else "roberta"
    config = {**sizes, "vocab_size": len(whole) + 5, "pad_token_id": whole.pad_token_id}
    architecture = {"bert": "Bert", "roberta": "Roberta"}[name] + head
    teacher = transformers_model(architecture=architecture, model_type=name, config=config).eval()
    with gzip.open(tmp_path / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{json.dumps({'text': text})}\n" for text in SENTENCES)
    whole.save_pretrained(tmp_path / "whole")
    cut = CutVocabulary(str(tmp_path / "whole"), [str(tmp_path / "train.jsonl.gz")], str(tmp_path / "small"))
    student = student_from_teacher(teacher, vocabulary=cut).eval()
    smaller = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert student.config.vocab_size == len(smaller)
    assert student.config.pad_token_id == smaller.pad_token_id
    with torch.no_grad():
        ours = student(**smaller(SENTENCES, padding=True, return_tensors="pt")).logits
        theirs = teacher(**whole(SENTENCES, padding=True, return_tensors="pt")).logits
    if head == "ForMaskedLM":
        theirs = theirs[..., read_token_map(tmp_path / "small")]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    again = student_from_teacher(teacher, vocabulary=str(tmp_path / "small")).eval()
    assert torch.equal(again.get_input_embeddings().weight, student.get_input_embeddings().weight)


def test_rare_tokens_can_be_left_to_their_pieces(tmp_path: Path) -> None:
    corpus = ["funny film"] * 3 + ["storytelling"]
    often = cut_tokenizer(WHOLE["wordpiece"], corpus, tmp_path / "often", min_count=2)
    assert set(often) < set(cut_tokenizer(WHOLE["wordpiece"], corpus, tmp_path / "all"))


def test_what_cannot_be_cut_says_why(tmp_path: Path) -> None:
    whole = WHOLE["wordpiece"]
    with pytest.raises(ConfigurationError, match="no text"):
        cut_tokenizer(whole, [" "], tmp_path / "small")
    with pytest.raises(ConfigurationError, match="min_count must be at least 1"):
        cut_tokenizer(whole, SENTENCES, tmp_path / "small", min_count=0)
    characters = train_tokenizer(SENTENCES, 60, "characters")
    with pytest.raises(ConfigurationError, match="WordLevel tokenizer cannot be cut"):
        cut_tokenizer(characters, SENTENCES, tmp_path / "small")
    with pytest.raises(ConfigurationError, match="no fast tokenizer"):
        cut_tokenizer(object(), SENTENCES, tmp_path / "small")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigurationError, match="holds other files"):
        cut_tokenizer(whole, SENTENCES, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigurationError, match=r"no token_map\.json"):
        read_token_map(tmp_path / "mine")
    cut_tokenizer(whole, SENTENCES, tmp_path / "small")
    (tmp_path / "small" / "token_map.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_token_map(tmp_path / "small")


def test_a_vocabulary_that_is_not_the_teachers_is_refused(tmp_path: Path) -> None:
    cut_tokenizer(WHOLE["bpe"], SENTENCES, tmp_path / "small")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    few = transformers_model(model_type="bert", config={**sizes, "vocab_size": 50})
    with pytest.raises(ConfigurationError, match="cut the teacher's own tokenizer"):
        student_from_teacher(few, vocabulary=str(tmp_path / "small"))
    counted = transformers_model(model_type="roberta", config={**sizes, "vocab_size": 450, "pad_token_id": 400})
    with pytest.raises(ConfigurationError, match="pads with token 400|counts positions"):
        student_from_teacher(counted, vocabulary=str(tmp_path / "small"))
