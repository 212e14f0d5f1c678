"""A tokenizer cut down to the tokens that a corpus needs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError
from kdlightning.text.vocabulary_closure import parts_of_bpe_tokens, tried_pieces

TOKEN_MAP = "token_map.json"
"""Beside a cut tokenizer: for each of its ids the id of the tokenizer that it was cut from."""

_CHUNK = 512


def cut_tokenizer(tokenizer: Any, texts: Iterable[str], folder: str | Path, *, min_count: int = 1) -> list[int]:
    """Writes the folder of a smaller tokenizer that splits a corpus exactly as the whole one does.

    Kept are the tokens that the corpus uses, whatever they are made of, all special and added tokens, and of byte-level
    BPE all 256 bytes; ids are renumbered in their old order. What the corpus does not use falls into shorter pieces, or
    of WordPiece into the unknown token. `AutoTokenizer.from_pretrained(folder)` loads it, and `token_map.json` lies
    beside it, which `student_from_teacher(vocabulary=folder)` and `FrozenTeacher(token_map=folder)` read.

    Args:
        tokenizer: a fast transformers tokenizer, WordPiece (BERT, DistilBERT) or byte-level BPE (RoBERTa).
        texts: the corpus; of a data set the training split.
        folder: where to write; what an earlier cut left there is written over.
        min_count: keep tokens that occur so often; with more than 1, texts with rarer tokens are split otherwise.

    Returns:
        The kept ids of the whole tokenizer, ascending.

    Raises:
        ConfigurationError: another kind of tokenizer, no text, or a folder with other files.
    """
    whole = _description(tokenizer)
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ConfigurationError("cut_tokenizer: the corpus has no text")
    if min_count < 1:
        raise ConfigurationError(f"cut_tokenizer: min_count must be at least 1, got {min_count}")
    kept = _kept(tokenizer, whole, texts, min_count)
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not (target / TOKEN_MAP).is_file():
        raise ConfigurationError(f"cut_tokenizer: {target} holds other files: name a new folder")
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    _write(tokenizer, whole, kept, beside)
    if min_count == 1:
        _check_same(tokenizer, texts, kept, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    return kept


def read_token_map(folder: str | Path) -> list[int]:
    """For each id of a cut tokenizer the id of the tokenizer that it was cut from.

    Raises:
        ConfigurationError: there is no such folder, or another program's.
    """
    path = Path(folder) / TOKEN_MAP
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["ids"]
    except OSError as error:
        raise ConfigurationError(
            f"{folder} is no folder of a cut tokenizer (no {TOKEN_MAP}): cut_tokenizer and student_from_teacher with "
            "vocabulary: {tokenizer: …, texts: …, folder: …} write one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged: delete its folder and cut again") from error
    return [int(number) for number in found]


def _description(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigurationError(
            f"cut_tokenizer: {type(tokenizer).__name__} is no fast tokenizer: WordPiece and byte-level BPE can be cut"
        )
    whole: dict[str, Any] = json.loads(backend.to_str())
    model = whole["model"]
    plain = model["type"] == "WordPiece" or (
        model["type"] == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"))
        and not (model.get("byte_fallback") or model.get("ignore_merges") or model.get("unk_token"))
    )
    if not plain:
        raise ConfigurationError(
            f"cut_tokenizer: this {model['type']} tokenizer cannot be cut: WordPiece and byte-level BPE can"
        )
    return whole


def _kept(tokenizer: Any, whole: dict[str, Any], texts: list[str], min_count: int) -> list[int]:
    model, vocabulary = whole["model"], whole["model"]["vocab"]
    counts: Counter[int] = Counter()
    for ids in _ids(tokenizer, texts):
        counts.update(ids)
    kept = {number for number, count in counts.items() if count >= min_count}
    kept |= {entry["id"] for entry in whole["added_tokens"]} | set(tokenizer.all_special_ids)
    names = {number: token for token, number in vocabulary.items()}
    if model["type"] == "BPE":
        used = [names[number] for number in kept if number in names]
        kept |= {vocabulary[part] for part in parts_of_bpe_tokens(used, model["merges"])}
        kept |= {number for token, number in vocabulary.items() if len(token) == 1}
    elif min_count == 1:
        kept |= {vocabulary[piece] for piece in tried_pieces(tokenizer.backend_tokenizer, model, texts)}
    return sorted(kept)


def _ids(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    # As long as they are: a text that is cut somewhere uses no other tokens than this.
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        for start in range(0, len(texts), _CHUNK):
            for encoding in backend.encode_batch(texts[start : start + _CHUNK]):
                yield encoding.ids
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _write(tokenizer: Any, whole: dict[str, Any], kept: list[int], folder: Path) -> None:
    new = {old: number for number, old in enumerate(kept)}
    model = whole["model"]
    words = {token: new[number] for token, number in model["vocab"].items() if number in new}
    smaller = {**whole, "model": {**model, "vocab": words}, "truncation": None, "padding": None}
    if model["type"] == "BPE":
        pairs = (pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"])
        smaller["model"]["merges"] = [
            [left, right] for left, right in pairs if left in words and right in words and left + right in words
        ]
    smaller["added_tokens"] = [{**entry, "id": new[entry["id"]]} for entry in whole["added_tokens"]]
    if whole.get("post_processor"):
        smaller["post_processor"] = _renumbered(whole["post_processor"], new)
    tokenizer.save_pretrained(str(folder))
    for stale in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):  # an older transformers writes them
        (folder / stale).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(smaller, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {str(new[int(old)]): entry for old, entry in decoder.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    content = {"ids": kept, "from_size": len(tokenizer)}
    (folder / TOKEN_MAP).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _renumbered(processor: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """A post-processor with the special tokens' new ids."""
    found = dict(processor)
    for name in ("sep", "cls"):
        if name in found:
            found[name] = [found[name][0], new[found[name][1]]]
    if isinstance(found.get("special_tokens"), dict):
        found["special_tokens"] = {
            name: {**entry, "ids": [new[number] for number in entry["ids"]]}
            for name, entry in found["special_tokens"].items()
        }
    if "processors" in found:
        found["processors"] = [_renumbered(part, new) for part in found["processors"]]
    return found


def _check_same(tokenizer: Any, texts: list[str], kept: list[int], folder: Path) -> None:
    from kdlightning.text.tokenizers import load_tokenizer

    smaller = load_tokenizer(str(folder))
    for text, ours, theirs in zip(texts, _ids(smaller, texts), _ids(tokenizer, texts), strict=True):
        if [kept[number] for number in ours] != theirs:
            raise ConfigurationError(
                f"cut_tokenizer: the smaller tokenizer splits {text[:60]!r} otherwise than the whole one: this kind of "
                "tokenizer cannot be cut"
            )
