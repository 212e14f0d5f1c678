"""The words that a student keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError
from kdlightning.models.shrink.encoder import Encoder
from kdlightning.text.smaller_vocabulary import TOKEN_MAP, cut_tokenizer, read_token_map

_IDS = ("pad", "bos", "eos", "cls", "sep", "mask")


@dataclass
class CutVocabulary:
    """The tokens that a corpus uses; see `kdlightning.text.cut_tokenizer`.

    The folder is written once and read from then on, by the student, by the data (`tokenizer: FOLDER`) and by a teacher
    with the whole vocabulary (`FrozenTeacher(token_map=FOLDER)`); delete it to cut again.

    Args:
        tokenizer: the teacher's tokenizer: a folder or hub name.
        texts: files of the corpus, JSONL, CSV or plain text (`.gz` too); of a data set the training split alone.
        folder: where the smaller tokenizer lies.
        text_field: the texts' field in records, or several.
        min_count: keep tokens that occur so often.
    """

    tokenizer: str
    texts: list[str]
    folder: str
    text_field: str | list[str] = "text"
    min_count: int = 1

    def kept(self) -> list[int]:
        """The ids that are kept, ascending; cuts the tokenizer if there is none yet.

        Raises:
            ConfigurationError: see `cut_tokenizer` and the readers of data files.
        """
        if not (Path(self.folder) / TOKEN_MAP).is_file():
            from kdlightning.text.tokenizers import load_tokenizer

            texts = [text for name in self.texts for text in self._read(name)]
            return cut_tokenizer(load_tokenizer(self.tokenizer), texts, self.folder, min_count=self.min_count)
        return read_token_map(self.folder)

    def _read(self, name: str) -> list[str]:
        from kdlightning.data.files import RECORD_SUFFIXES, existing, field, read_records, read_text

        path = existing(name, "vocabulary", "a file of texts", "give the corpus in texts")
        if not path.name.endswith(RECORD_SUFFIXES):
            return read_text(path).splitlines()
        records = read_records(path)
        fields = [self.text_field] if isinstance(self.text_field, str) else self.text_field
        return [str(text) for each in fields for text in field(records, each, "vocabulary")]


def kept_words(vocabulary: str | CutVocabulary | None, encoder: Encoder) -> list[int] | None:
    """The rows of the teacher's embedding that the student keeps; None for all.

    Raises:
        ConfigurationError: the tokenizer was cut from one with more tokens than the teacher knows.
    """
    if vocabulary is None:
        return None
    kept = read_token_map(vocabulary) if isinstance(vocabulary, str) else vocabulary.kept()
    if kept[-1] >= encoder.words:
        raise ConfigurationError(
            f"vocabulary: the tokenizer has a token of number {kept[-1]} and the teacher's vocabulary {encoder.words}: "
            "cut the teacher's own tokenizer"
        )
    return kept


def renumbered_ids(config: Any, kept: list[int]) -> dict[str, int | None]:
    """The special tokens of a configuration with their new numbers.

    Raises:
        ConfigurationError: the padding token is cut off.
    """
    new = {old: number for number, old in enumerate(kept)}
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and pad not in new:
        raise ConfigurationError(f"vocabulary: the teacher pads with token {pad}, which the cut tokenizer lacks")
    names = [f"{kind}_token_id" for kind in _IDS]
    return {name: new.get(old) for name in names if isinstance(old := getattr(config, name, None), int)}


def check_positions(model: Any, kept: list[int]) -> None:
    """Raises ConfigurationError if positions are counted from the padding token's number and it changes (RoBERTa)."""
    pad = getattr(model.config, "pad_token_id", None)
    counted = any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )
    if counted and pad is not None and kept.index(pad) != pad:
        raise ConfigurationError(
            f"vocabulary: {type(model).__name__} counts positions from its padding token's number {pad}, which would "
            f"become {kept.index(pad)}: its tokenizer cannot be cut"
        )
