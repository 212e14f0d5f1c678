"""A classifier of sentence pairs as a referee: how much more probable a label has become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Completion, Request, TextGenerator
from kdlightning.generation.transformers import fingerprint

Pair = tuple[str, str]


class PairScorer(TextGenerator):
    """Answers with a number: P(label | new pair) − P(label | old pair), from -1 to 1.

    A request's prompt is a JSON object `{"old": [first, second], "new": [first, second], "label": …}`. Several models
    are an ensemble: the mean of their scores, weighted by the softmax of these (as DISCO's public code has it).

    Args:
        models: a folder or hub name of a sequence classifier of transformers, or several. A folder that
            `kdlightning export` wrote has no tokenizer: give it.
        tokenizer: a folder or hub name of the tokenizer of all models; each model's own by default.
        label_names: the classes in the order of their numbers; the model's own names by default.
        batch_size: requests scored together.
        max_length: pairs are cut to so many tokens.
        device: where the models run.
    """

    def __init__(
        self,
        models: str | list[str],
        tokenizer: str | None = None,
        label_names: list[str] | None = None,
        batch_size: int = 32,
        max_length: int = 128,
        device: str = "cpu",
    ) -> None:
        self.models = [models] if isinstance(models, str) else list(models)
        if not self.models:
            raise ConfigurationError("PairScorer: models is empty; give a folder or a hub name")
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value < 1:
                raise ConfigurationError(f"PairScorer: {name} is {value}; give at least 1")
        self.tokenizer = tokenizer
        self.label_names = label_names
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device
        self._loaded: list[tuple[Any, Any, dict[str, int]]] = []

    @property
    def identity(self) -> str:
        """The models' weights, and what their answers depend on besides."""
        parts = [f"{fingerprint(model)}:{'|'.join(names)}" for model, _, names in self._members()]
        return f"PairScorer:{self.max_length}:{'+'.join(parts)}"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Scores a batch; a prompt that is no such question is a failure."""
        asked = [_question(request.text) for request in requests]
        readable = [question for question in asked if question is not None]
        pairs = list(dict.fromkeys(pair for old, new, _ in readable for pair in (old, new)))
        scores: list[Tensor] = []
        for model, tokenizer, numbers in self._members() if readable else ():
            probabilities = self._probabilities(model, tokenizer, pairs)
            columns = [self._number(label, numbers) for _, _, label in readable]
            before = probabilities[[pairs.index(old) for old, _, _ in readable], columns]
            after = probabilities[[pairs.index(new) for _, new, _ in readable], columns]
            scores.append(after - before)
        means = iter(_ensemble(torch.stack(scores, dim=-1)).tolist()) if scores else iter(())
        return [
            Answer.refused(request, "the prompt is no question about pairs")
            if question is None
            else Answer(request, dict.fromkeys(request.numbers, Completion(f"{next(means):.6f}")))
            for request, question in zip(requests, asked, strict=True)
        ]

    @torch.no_grad()
    def _probabilities(self, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Tensor:
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
        inputs = tokenizer(
            firsts, seconds, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        return model(**inputs.to(self.device)).logits.float().softmax(dim=-1).cpu()

    def _number(self, label: str, numbers: dict[str, int]) -> int:
        if label.lower() not in numbers:
            raise ConfigurationError(
                f"PairScorer: the classifier has no label {label!r}{nearest(label, numbers)}; give label_names"
            )
        return numbers[label.lower()]

    def _members(self) -> list[tuple[Any, Any, dict[str, int]]]:
        if not self._loaded:
            self._loaded = [self._load(name) for name in self.models]
        return self._loaded

    def _load(self, name: str) -> tuple[Any, Any, dict[str, int]]:
        from transformers import AutoModelForSequenceClassification

        from kdlightning.text.tokenizers import load_tokenizer

        try:
            model = AutoModelForSequenceClassification.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0][:200]
            raise ConfigurationError(f"PairScorer: {name!r} cannot be loaded ({reason}): give a folder") from error
        names = self.label_names or [model.config.id2label[number] for number in range(model.config.num_labels)]
        if len(names) != model.config.num_labels:
            raise ConfigurationError(
                f"PairScorer: label_names has {len(names)} names, and {name} {model.config.num_labels} classes"
            )
        tokenizer = load_tokenizer(self.tokenizer or name)
        return model.eval().to(self.device), tokenizer, {str(each).lower(): n for n, each in enumerate(names)}


def _ensemble(scores: Tensor) -> Tensor:
    """The mean over the last dimension, weighted by the softmax over it."""
    return (scores.softmax(dim=-1) * scores).sum(dim=-1)


def _question(text: str) -> tuple[Pair, Pair, str] | None:
    try:
        content = json.loads(text)
        old, new = (tuple(str(part) for part in content[name]) for name in ("old", "new"))
        label = str(content["label"])
    except (ValueError, KeyError, TypeError):
        return None
    return ((old[0], old[1]), (new[0], new[1]), label) if len(old) == len(new) == 2 else None
