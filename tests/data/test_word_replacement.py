"""Copies of texts with words replaced: by whom, how often, made once, and gone on with after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from kdlightning import Classification, ConfigurationError, DistillModule, TextClassification, WordReplacement
from kdlightning.data import word_replacement
from kdlightning.text.tokenizers import train_tokenizer
from kdlightning.text.word_candidates import WordCandidates, whole_words
from kdlightning.text.word_vectors import WordVectors

TEXTS = [
    "A good film, with 3 warm songs!",
    "The songs are bad; the film is good.",
    "warm and good and bad",
    "never 7 ... ?",
    "a film is a film",
    "Good songs",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([*TEXTS, "unrememberable"], 110)


@pytest.fixture(scope="module")
def masked(tokenizer: Any) -> nn.Module:
    """A small BERT with random weights, large enough to prefer words by their neighbours."""
    return build(tokenizer)


def build(tokenizer: Any, kind: str = "bert") -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer) + 3,  # more than the tokenizer has, as published models do
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.AutoModelForMaskedLM.from_config(config)


@pytest.fixture
def replacement(masked: nn.Module, tokenizer: Any, tmp_path: Path) -> Any:
    def make(**options: Any) -> WordReplacement:
        given = {"copies": 4, "candidates": 3, "path": str(tmp_path / "kept")} | options
        return WordReplacement(masked, tokenizer, **given)

    return make


@torch.no_grad()
def candidates_loop(model: nn.Module, tokenizer: Any, text: str, place: int, count: int, beside: bool) -> list[str]:
    """One mask, one text, nothing padded: the most probable tokens that are words."""
    encoded = tokenizer(text, text, return_tensors="pt") if beside else tokenizer(text, return_tensors="pt")
    encoded["input_ids"][0, place] = tokenizer.mask_token_id
    logits = model.eval()(**encoded).logits[0, place]
    found = []
    for token in logits.argsort(descending=True).tolist():
        if token < len(tokenizer):
            name = tokenizer.convert_ids_to_tokens(token)
            if name.isalpha():
                found.append(name)
    return found[:count]


@pytest.mark.parametrize("beside", [False, True])
def test_candidates_are_the_models_most_probable_words(masked: nn.Module, tokenizer: Any, beside: bool) -> None:
    words = WordCandidates(masked.eval(), tokenizer, 64, beside_original=beside, batch_size=3)
    masks = [(text, word.token) for text in words.read(TEXTS) for word in text.words if word.token is not None]
    assert len(masks) > 15
    for (text, place), found in zip(masks, words.ask(masks, 5), strict=True):
        assert found == candidates_loop(masked, tokenizer, text.text, place, 5, beside)
    assert words.ask([], 5) == []


def test_words_are_runs_of_letters_and_know_whether_they_are_one_piece(masked: nn.Module, tokenizer: Any) -> None:
    words = WordCandidates(masked.eval(), tokenizer, 64, beside_original=False, batch_size=3)
    first, odd = words.read([TEXTS[0], "good unrememberabled 日"])
    assert [first.text[w.start : w.end] for w in first.words] == ["A", "good", "film", "with", "warm", "songs"]
    for word in first.words:
        pieces = tokenizer.tokenize(first.text[word.start : word.end])
        assert (word.token is not None) == (len(pieces) == 1)
    assert [word.token is None for word in odd.words] == [False, True, True], "unknown is no piece of the vocabulary"
    short = WordCandidates(masked, tokenizer, 4, beside_original=False, batch_size=3).read([TEXTS[0]])[0]
    assert len(short.words) == 2


def test_byte_level_vocabularies_offer_what_begins_a_word() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator([text.lower() for text in TEXTS] * 3, trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )
    words = whole_words(tokenizer)
    assert {"good", "film", "warm", "songs"} <= set(words.values())
    assert all(tokenizer.convert_ids_to_tokens(number).startswith("Ġ") for number in words)
    replacement = WordReplacement(build(tokenizer, "roberta"), tokenizer, copies=5, probability=1.0, path=None)
    (copies,), _ = replacement([["a good film, with warm songs"]])
    for copy in copies:
        assert ", " in copy
        assert all(word.strip(",").isalpha() for word in copy.split(" "))
        assert len(copy.split(" ")) == 6


def test_words_are_replaced_by_their_candidates_as_often_as_was_asked(replacement: Any, tokenizer: Any) -> None:
    made = replacement(copies=200, probability=0.4, keep_words=["warm"])
    (copies,), sources = made([[TEXTS[0]]])
    assert sources == [0] * len(copies)
    assert len(set(copies)) == len(copies)
    assert TEXTS[0] not in copies
    options = dict(zip(["A", "good", "film"], range(1, 4), strict=True))
    wanted = {
        word: candidates_loop(made.model, tokenizer, TEXTS[0], place, 3, False) for word, place in options.items()
    }
    before, _ = TEXTS[0].split(",")
    counts = []
    for copy in copies:
        head, rest = copy.split(",")
        for own, other in zip(before.split(), head.split(), strict=True):
            assert other == own or other in wanted[own]
        assert " 3 warm " in rest
        assert rest.endswith("!")
    # Copies that were drawn twice are left out: the shares are counted before that.
    read = WordCandidates(made.model.eval(), tokenizer, 64, beside_original=False, batch_size=8)
    for copy in made._replaced([TEXTS[0]] * 20, list(range(20)), read, None):
        counts += [text.split()[1] != "good" for text in copy]
    own = wanted["good"].count("good") / 3  # the word itself may be drawn too
    assert sum(counts) / len(counts) == pytest.approx(0.4 * (1 - own), abs=0.03)


def test_words_of_several_pieces_have_neighbours_only_with_vectors(
    replacement: Any, tokenizer: Any, tmp_path: Path
) -> None:
    text = "unrememberabled 7"
    assert len(tokenizer.tokenize("unrememberabled")) > 1
    assert replacement(probability=1.0)([[text]]) == ([[]], [])
    vectors = tmp_path / "vectors.txt"
    numbers = numpy.random.default_rng(0).normal(size=(30, 4))
    names = ["unrememberabled", *(f"w{number}" for number in range(29))]
    vectors.write_text(
        "".join(f"{w} {' '.join(f'{v:.5f}' for v in row)}\n" for w, row in zip(names, numbers, strict=True))
    )
    (copies,), _ = replacement(probability=1.0, copies=60, word_vectors=str(vectors))([[text]])
    cosines = [float(row @ numbers[0] / numpy.linalg.norm(row) / numpy.linalg.norm(numbers[0])) for row in numbers]
    wanted = [names[number] for number in sorted(range(1, 30), key=lambda n: -cosines[n])[:3]]
    assert {copy.split()[0] for copy in copies} == set(wanted)
    assert WordVectors(vectors).nearest("unrememberabled", 3) == wanted
    assert len(WordVectors(vectors).nearest("w3", 100)) == 29
    assert WordVectors(vectors).nearest("absent", 3) == []
    for content, message in (("a 1 2\nb 1\n", "line 2 is no word"), ("a b c\n", "line 1 is no"), ("", "has none")):
        vectors.write_text(content)
        with pytest.raises(ConfigurationError, match=message):
            WordVectors(vectors)
    vectors.write_text("2 3\na 1 2 3\nb 1 2 4\n")
    assert WordVectors(vectors).nearest("a", 3) == ["b"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of masks in each question to the model; a negative first entry breaks off before that question."""
    numbers: list[int] = []
    ask = WordCandidates.ask

    def count(self: WordCandidates, masks: Any, number: int) -> Any:
        if numbers and numbers[0] == -len(numbers):
            numbers.clear()
            raise KeyboardInterrupt
        numbers.append(len(masks))
        return ask(self, masks, number)

    monkeypatch.setattr(WordCandidates, "ask", count)
    monkeypatch.setattr(word_replacement, "_CHUNK", 2)
    return numbers


def test_they_are_made_once_and_anew_for_other_options_texts_or_weights(
    replacement: Any, asked: list[int], masked: nn.Module, tmp_path: Path
) -> None:
    first = replacement()([TEXTS])
    assert len(asked) == 3
    assert replacement()([TEXTS]) == first
    assert len(asked) == 3
    assert len(list((tmp_path / "kept").iterdir())) == 1
    changes = ({"seed": 1}, {"copies": 5}, {"probability": 0.5}, {"candidates": 4}, {"keep_words": ["good"]})
    others = [replacement(**change)([TEXTS]) for change in changes]
    assert all(other != first for other in others)
    replacement()([TEXTS[::-1]])
    assert len(asked) == 3 * 7
    bias = masked.get_parameter("cls.predictions.bias")
    before = bias.detach().clone()
    with torch.no_grad():
        bias += torch.arange(len(bias)) % 7
    replacement()([TEXTS])
    with torch.no_grad():
        bias.copy_(before)
    assert len(asked) == 3 * 8
    assert replacement(path=None, batch_size=1)([TEXTS]) == first


@pytest.mark.parametrize("damage", ["torn", "middle", "killed"])
def test_what_is_torn_or_unfinished_is_made_again_and_ends_alike(
    damage: str, replacement: Any, asked: list[int], tmp_path: Path
) -> None:
    whole = replacement(path=str(tmp_path / "whole"))([TEXTS])
    asked.clear()
    if damage == "killed":
        asked.append(-2)  # one question more
        with pytest.raises(KeyboardInterrupt):
            replacement()([TEXTS])
    else:
        replacement()([TEXTS])
        (file,) = (tmp_path / "kept").iterdir()
        content = bytearray(file.read_bytes())
        if damage == "middle":
            content[content.index(b"\n") + 14] ^= 1
        file.write_bytes(content if damage == "middle" else content[:-5])
    asked.clear()
    assert replacement()([TEXTS]) == whole
    assert 1 <= len(asked) <= (3 if damage == "middle" else 2)
    names = [next((tmp_path / folder).iterdir()) for folder in ("whole", "kept")]
    assert names[0].name == names[1].name
    assert names[0].read_bytes() == names[1].read_bytes()


def test_the_model_comes_back_as_it_was(replacement: Any, masked: nn.Module) -> None:
    masked.train()
    before = torch.random.get_rng_state()
    replacement()([TEXTS])
    assert masked.training
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 12), ("test", 6)):
        records = [{"text": TEXTS[n % 6], "second": TEXTS[(n + 2) % 6], "label": n % 3 % 2} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


@pytest.fixture
def saved(masked: nn.Module, tokenizer: Any, tmp_path: Path) -> str:
    masked.save_pretrained(tmp_path / "masked")
    tokenizer.save_pretrained(tmp_path / "masked")
    return str(tmp_path / "masked")


def test_training_texts_get_copies_with_their_labels_after_the_split(folder: Path, saved: str, tokenizer: Any) -> None:
    augmentation = WordReplacement(saved, copies=3, candidates=5, path=str(folder / "kept"))
    options = {"val_split": 4, "train_limit": 6, "tokenizer": tokenizer}
    plain = TextClassification(str(folder), **options)
    data = TextClassification(str(folder), **options, augmentation=augmentation)
    assert [len(data.part(name)) for name in ("val", "test")] == [4, 6]
    assert not (folder / "kept").exists(), "nothing is made for who does not train"
    data.prepare_data()
    part = data.part("train")
    assert 6 < len(part) <= 24
    for number in range(6):
        assert torch.equal(part[number]["input_ids"], plain.part("train")[number]["input_ids"])
    assert torch.equal(part.labels[:6], plain.part("train").labels)
    texts = [tokenizer.decode(part[number]["input_ids"], skip_special_tokens=True) for number in range(len(part))]
    (copies,), sources = augmentation([[TEXTS[int(r) % 6] for r in plain.part("train").rows]])
    assert part.labels[6:].tolist() == [int(part.labels[source]) for source in sources]
    again = [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in copies]
    assert texts[6:] == again
    batch = next(iter(data.train_dataloader()))
    assert int(batch.index.max()) < len(part)
    assert len(part.lengths) == len(part)


def test_pairs_and_numbers(folder: Path, saved: str, tokenizer: Any) -> None:
    augmentation = WordReplacement(saved, copies=2, candidates=5, path=None)
    data = TextClassification(
        str(folder),
        text_field=["text", "second"],
        target="number",
        tokenizer=tokenizer,
        augmentation=augmentation,
        val_split=2,
        length_bucketing=True,
        batch_size=4,
    )
    part = data.part("train")
    assert 10 < len(part) <= 30
    assert part.labels.dtype == torch.float32
    assert part[len(part) - 1]["token_type_ids"].max() == 1
    columns, sources = augmentation([["good film", "never"], ["bad songs", "a film"]])
    assert len(columns) == 2
    assert len(columns[0]) == len(columns[1]) == len(sources)


def test_a_run_with_copies(folder: Path, saved: str, tokenizer: Any, trainer: Any) -> None:
    from kdlightning import transformers_model

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    student = transformers_model(model_type="bert", config={**sizes, "vocab_size": len(tokenizer)})
    augmentation = WordReplacement(saved, copies=2, path=str(folder / "kept"))
    data = TextClassification(str(folder), tokenizer=tokenizer, val_split=3, batch_size=64, augmentation=augmentation)
    runner = trainer(max_epochs=2)
    module = DistillModule(student, task=Classification(2))
    runner.fit(module, datamodule=data)
    assert runner.global_step == 2
    assert len(list((folder / "kept").iterdir())) == 1
    runner.test(module, datamodule=TextClassification(str(folder), tokenizer=tokenizer, augmentation=augmentation))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 0}, "copies must be at least 1, not 0"),
        ({"probability": 0.0}, "probability is above 0 and at most 1"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"word_vectors": "absent.txt"}, "there is no absent.txt"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, replacement: Any) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replacement(**options)([TEXTS])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_that_are_none_are_refused(masked: nn.Module, tokenizer: Any, saved: str, tmp_path: Path) -> None:
    import transformers

    with pytest.raises(ConfigurationError, match="give the model's tokenizer too"):
        WordReplacement(masked)
    with pytest.raises(ConfigurationError, match="there is no folder ./absent"):
        WordReplacement("./absent")([TEXTS])
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(saved)
    classifier.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ConfigurationError, match=r"has no head that predicts masked words .*before fine-tuning"):
        WordReplacement(str(tmp_path / "classifier"))([TEXTS])
    with pytest.raises(ConfigurationError, match="a fast tokenizer with a mask token"):
        WordReplacement(masked, train_tokenizer(TEXTS, 300, "bpe"), path=None)([TEXTS])
