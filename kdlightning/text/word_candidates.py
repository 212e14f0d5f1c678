"""Words that a masked language model would put in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError

_MARKS = ("Ġ", "▁")
"""What stands before pieces that begin a word, in byte-level and SentencePiece vocabularies."""


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        start: its first character's place in the text.
        end: the place behind its last character.
        token: place of its token, if it is a single piece of the vocabulary; else None.
    """

    start: int
    end: int
    token: int | None


@dataclass(frozen=True)
class Text:
    """A text as the model sees it, and its words."""

    text: str
    inputs: Mapping[str, list[int]]
    words: Sequence[Word]


class WordCandidates:
    """Asks a masked language model, a mask in each pass.

    Args:
        model: of transformers, in evaluation mode.
        tokenizer: its tokenizer, a fast one with a mask token.
        max_length: longer texts are cut to so many tokens; what was cut off has no words.
        beside_original: show the model the text itself behind the one with the mask.
        batch_size: masks in a pass.

    Raises:
        ConfigurationError: the tokenizer is of no use for it.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, max_length: int, *, beside_original: bool, batch_size: int
    ) -> None:
        if not getattr(tokenizer, "is_fast", False) or tokenizer.mask_token_id is None:
            raise ConfigurationError(
                f"WordReplacement needs a fast tokenizer with a mask token, and {type(tokenizer).__name__} is none: "
                "name a masked language model"
            )
        from kdlightning.taps import TapReader

        self.tokenizer = tokenizer
        self.max_length = max_length
        self.beside_original = beside_original
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        self.special = set(tokenizer.all_special_ids)
        self._model = TapReader(model, language=True)
        self._names = whole_words(tokenizer)
        self._usable: Tensor | None = None

    def read(self, texts: Sequence[str]) -> list[Text]:
        """The texts with their words: runs of letters that the tokenizer takes for one."""
        pairs = [list(texts), list(texts)] if self.beside_original else [list(texts)]
        found = self.tokenizer(*pairs, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        names = [name for name in ("input_ids", "token_type_ids") if name in found]
        return [
            Text(text, {name: found[name][row] for name in names}, self._words(found, row, text))
            for row, text in enumerate(texts)
        ]

    def _words(self, found: Any, row: int, text: str) -> list[Word]:
        ids, offsets = found["input_ids"][row], found["offset_mapping"][row]
        places: dict[int, list[int]] = {}
        for place, (word, part) in enumerate(zip(found.word_ids(row), found.sequence_ids(row), strict=True)):
            if word is not None and part == 0:
                places.setdefault(word, []).append(place)
        words = []
        for tokens in places.values():
            start, end = offsets[tokens[0]][0], offsets[tokens[-1]][1]
            start += len(text[start:end]) - len(text[start:end].lstrip())
            if text[start:end].isalpha():
                single = len(tokens) == 1 and ids[tokens[0]] not in self.special
                words.append(Word(start, end, tokens[0] if single else None))
        return words

    @torch.no_grad()
    def ask(self, masks: Sequence[tuple[Text, int]], count: int) -> list[list[str]]:
        """For each text and place of a token in it the most probable words there, the most probable first."""
        order = sorted(range(len(masks)), key=lambda number: len(masks[number][0].inputs["input_ids"]))
        answers: list[list[str]] = [[] for _ in masks]
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            logits = self._logits([masks[number] for number in part])
            best = logits.topk(min(count, len(self._names)), dim=1).indices.tolist()
            for number, ids in zip(part, best, strict=True):
                answers[number] = [self._names[token] for token in ids]
        return answers

    def _logits(self, masks: Sequence[tuple[Text, int]]) -> Tensor:
        """`(N, V)` at the masks; those of anything but whole words are −∞."""
        length = max(len(text.inputs["input_ids"]) for text, _ in masks)
        lengths = torch.tensor([len(text.inputs["input_ids"]) for text, _ in masks])
        inputs = {
            name: torch.tensor([_filled(text.inputs[name], length, self._filling(name)) for text, _ in masks])
            for name in masks[0][0].inputs
        }
        rows, places = torch.arange(len(masks)), torch.tensor([place for _, place in masks])
        inputs["input_ids"][rows, places] = self.tokenizer.mask_token_id
        inputs["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
        output = self._model({name: values.to(self.device) for name, values in inputs.items()})
        if output.hidden is not None and output.head is not None:
            logits = output.head(output.hidden[rows, places])
        else:
            logits = output.logits[rows, places]
        if self._usable is None:
            self._usable = torch.zeros(logits.shape[1], dtype=torch.bool)
            self._usable[[token for token in self._names if token < logits.shape[1]]] = True
            self._usable = self._usable.to(self.device)
        return logits.float().masked_fill(~self._usable, float("-inf"))

    def _filling(self, name: str) -> int:
        return int(self.tokenizer.pad_token_id or 0) if name == "input_ids" else 0


def whole_words(tokenizer: Any) -> dict[int, str]:
    """Tokens that are words of letters by themselves, by number, as they stand in a text."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    marked = any(token.startswith(_MARKS) for token in tokens)
    special = set(tokenizer.all_special_ids)
    found = {}
    for number, token in enumerate(tokens):
        if number not in special and (not marked or token.startswith(_MARKS)):
            word = tokenizer.decode([number]).strip() if marked else token
            if word.isalpha():
                found[number] = word
    if not found:
        raise ConfigurationError(f"WordReplacement: no token of {type(tokenizer).__name__} is a word of its own")
    return found


def _filled(values: list[int], length: int, filling: int) -> list[int]:
    return values + [filling] * (length - len(values))
