"""Examples as token sequences whose loss is on the label alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from kdlightning.blackbox.base import BlackBoxMethod, Example, Outcome, Problem
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.transformers import prompt_tokens

IGNORED = -100


@dataclass(frozen=True)
class TokenPair:
    """A tokenised example.

    Attributes:
        prompt: tokens of the prompt, as generation gives them to the student.
        label: tokens of the label with the end token; empty without a label.
        given: tokens before the label that are fed and not counted.
        tag: number of the task; -1 for a prompt without a label, None in methods of one task.
    """

    prompt: tuple[int, ...]
    label: tuple[int, ...]
    given: tuple[int, ...] = ()
    tag: int | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.given) + len(self.label)


def tokenize(example: Example, tokenizer: Any, *, encoder_decoder: bool = False, tags: Sequence[str] = ()) -> TokenPair:
    """Prompt, given part and label apart, so that each begins where it begins for a student that generates.

    Args:
        example: the example.
        tokenizer: the student's tokenizer.
        encoder_decoder: for which kind of student.
        tags: names of the method's tasks, in the order of their numbers; empty for one task.

    Raises:
        ConfigurationError: an example of a task that is not among them.
    """
    prompt = prompt_tokens(tokenizer, example.prompt, keep_end=encoder_decoder)
    given: list[int] = []
    label: list[int] = []
    if example.given:
        given = list(tokenizer(example.given, add_special_tokens=False)["input_ids"])
    if example.label:
        label = [*tokenizer(example.label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return TokenPair(tuple(prompt), tuple(label), tuple(given), _tag(example, tags))


def _tag(example: Example, tags: Sequence[str]) -> int | None:
    if not tags:
        return None
    if not example.label:
        return -1
    if example.tag not in tags:
        raise ConfigurationError(
            f"an example has the tag {example.tag!r}, which has no weight{nearest(example.tag, tags)}"
        )
    return list(tags).index(example.tag)


class LabelledSequences(Dataset):
    """Tokenised examples."""

    random_sources: tuple[str, ...] = ()

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenPair:
        return self.pairs[index]


class DrawnSequences(Dataset):
    """Training texts of a method that draws something at random for them: made, and tokenised, when they are read.

    What is drawn comes from Python's generator, which `IndexedViews` seeds from the run's seed, the epoch and the
    sample's number. A text that becomes longer than `max_length` by its draw loses the beginning of its prompt.

    Args:
        records: each with what the teacher wrote about it and was kept.
        method: makes the texts.
        student: whose they are.
        tokenizer: the student's tokenizer.
        max_length: longest text in tokens.
    """

    random_sources: tuple[str, ...] = ("python",)

    def __init__(
        self,
        records: Sequence[tuple[Problem, Sequence[Outcome]]],
        method: BlackBoxMethod,
        student: str,
        tokenizer: Any,
        max_length: int,
    ) -> None:
        self.records = list(records)
        self.method = method
        self.student = student
        self.tokenizer = tokenizer
        self.max_length = max_length
        # Whatever is drawn, a record has the same number of texts.
        counts = [len(self._texts(problem, outcomes)) for problem, outcomes in self.records]
        self.places = [(record, text) for record, count in enumerate(counts) for text in range(count)]

    def _texts(self, problem: Problem, outcomes: Sequence[Outcome]) -> Sequence[Example]:
        return self.method.examples(problem, outcomes).get(self.student, [])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> TokenPair:
        record, text = self.places[index]
        problem, outcomes = self.records[record]
        example = self._texts(replace(problem, draw=random.getrandbits(48)), outcomes)[text]
        both, tags = self.method.encoder_decoder, tuple(self.method.tag_weights)
        pair = tokenize(example, self.tokenizer, encoder_decoder=both, tags=tags)
        return replace(pair, prompt=pair.prompt[max(0, len(pair) - self.max_length) :])


class PaddedBatch:
    """Collates examples, padded on the right to the longest.

    A batch has `input_ids`, `attention_mask` and `labels` `(B, T)`, -100 outside the label. For encoder–decoders
    `input_ids` is the prompt alone, `labels` `(B, L)` the label, and `fed_labels` the same with what is given before
    it. Methods of several tasks have their numbers as `tags` `(B,)` too.

    Args:
        pad: filling of `input_ids`.
        encoder_decoder: for which kind of student.
    """

    def __init__(self, pad: int, *, encoder_decoder: bool = False) -> None:
        self.pad = pad
        self.encoder_decoder = encoder_decoder

    def __call__(self, pairs: Sequence[TokenPair]) -> dict[str, Tensor]:
        if self.encoder_decoder:
            inputs = [pair.prompt for pair in pairs]
            fed = [pair.given + pair.label or (IGNORED,) for pair in pairs]
        else:
            inputs = fed = [pair.prompt + pair.given + pair.label for pair in pairs]
        uncounted = [len(row) - len(pair.label) for row, pair in zip(fed, pairs, strict=True)]
        labels = [(IGNORED,) * count + pair.label for count, pair in zip(uncounted, pairs, strict=True)]
        batch = {
            "input_ids": _padded(inputs, self.pad),
            "attention_mask": _padded([(1,) * len(row) for row in inputs], 0),
            "labels": _padded(labels, IGNORED),
        }
        if self.encoder_decoder:
            batch["fed_labels"] = _padded(fed, IGNORED)
        if pairs[0].tag is not None:
            batch["tags"] = torch.tensor([pair.tag for pair in pairs], dtype=torch.int64)
        return batch


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=float(filling))
