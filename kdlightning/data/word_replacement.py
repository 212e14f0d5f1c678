"""More training texts: words replaced by those that a masked language model would put there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlightning.data.files import existing
from kdlightning.data.kept_lines import KeptLines
from kdlightning.data.seeding import mix
from kdlightning.errors import ConfigurationError
from kdlightning.text.masked_models import content_digest, file_digest, load_masked_model
from kdlightning.text.tokenizers import load_tokenizer
from kdlightning.text.word_candidates import Text, Word, WordCandidates
from kdlightning.text.word_vectors import WordVectors

_CHUNK = 64
"""Samples between two looks at the progress, whose copies are written together."""
_FORM = 1
"""Number of the procedure: another one makes other copies."""


class WordReplacement:
    """TinyBERT's data augmentation: copies of each training text in which words are replaced, an option of
    `TextClassification`.

    In each copy each word is replaced with a given probability: by one of the words that a masked language model finds
    most probable in its place, if it is a single piece of that model's vocabulary, and otherwise by one of its nearest
    words in a file of vectors. Without that file words of several pieces stay. Jiao et al., "TinyBERT", Findings of
    EMNLP 2020, algorithm 1: 20 copies for SST-2 and QNLI, 10 for MNLI and QQP, 30 for GLUE's other tasks.

    Words are runs of letters; numbers and punctuation stay, and candidates are whole words too. The released code
    drops pieces from the most probable tokens, so that fewer than `candidates` may be left; it also keeps English stop
    words (`keep_words`) and shows the text itself behind the masked one (`beside_original`). As there, the text itself
    stays among the training data, and copies that equal it or each other are dropped. Both texts of a pair are treated
    alike, each by itself.

    The copies are made once for the same texts, model and options, and kept in a file; a run that was killed goes on
    where it was.

    Args:
        model: hub name or folder of a masked language model with its tokenizer; or such a model itself (in Python,
            with `tokenizer`).
        tokenizer: hub name or folder, or a tokenizer; that of `model` by default.
        copies: of each text.
        probability: of a word to be replaced, 0 to 1.
        candidates: how many words one is drawn from, all alike.
        path: folder of the kept files; None keeps none.
        word_vectors: a text file of GloVe's form, for words of several pieces.
        keep_words: words that are never replaced, in lower case.
        beside_original: show the model the text itself behind the one with the mask.
        max_length: tokens of a text that the model sees (of both, if `beside_original`); words behind them stay.
        batch_size: masks in a pass.
        seed: of what is replaced by what.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        copies: int = 20,
        probability: float = 0.4,
        candidates: int = 15,
        path: str | None = "runs/augmented",
        word_vectors: str | None = None,
        keep_words: Sequence[str] = (),
        beside_original: bool = False,
        max_length: int = 128,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in (("copies", copies), ("candidates", candidates), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigurationError(f"WordReplacement: {name} must be at least 1, not {value}")
        if not 0 < probability <= 1:
            raise ConfigurationError(f"WordReplacement: probability is above 0 and at most 1, not {probability}")
        if isinstance(model, nn.Module) and tokenizer is None:
            raise ConfigurationError("WordReplacement: give the model's tokenizer too, or the folder of both as model")
        self.model = model
        self.tokenizer = tokenizer
        self.copies = copies
        self.probability = probability
        self.candidates = candidates
        self.path = path
        self.word_vectors = word_vectors
        self.keep_words = frozenset(keep_words)
        self.beside_original = beside_original
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed

    def __call__(self, columns: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
        """The copies of all texts.

        Args:
            columns: the texts; of pairs first all first ones, then all second ones.

        Returns:
            The copies in columns too, and for each the number of the text that it was made from.
        """
        if self.word_vectors is not None:
            existing(self.word_vectors, "WordReplacement", "a file of word vectors", "give word_vectors, or none")
        samples = list(zip(*columns, strict=True))
        given, tokenizer = self._model()
        learns, home = given.training, next(given.parameters()).device
        try:
            model = given.eval().to("cuda" if torch.cuda.is_available() else "cpu")
            made = self._kept(model, tokenizer, samples)
        finally:
            given.train(learns).to(home)
        sources = [number for number, copies in enumerate(made) for _ in copies]
        copies = [copy for each in made for copy in each]
        return [[str(copy[column]) for copy in copies] for column in range(len(columns))], sources

    def _kept(self, model: nn.Module, tokenizer: Any, samples: list[tuple[str, ...]]) -> list[Any]:
        if self.path is None:
            made: list[Any] = []
            self._make(model, tokenizer, samples, made, made.extend)
            return made
        name = self._digest(model, tokenizer, samples)[:24]
        with KeptLines(Path(self.path).expanduser() / f"{name}.jsonl").open() as kept:
            if len(kept.values) < len(samples):
                self._make(model, tokenizer, samples, kept.values, kept.add)
            return kept.values

    def _make(self, model: nn.Module, tokenizer: Any, samples: Any, made: list[Any], keep: Any) -> None:
        """Makes the copies of the samples behind those that are there."""
        from kdlightning.generation.progress import ProgressDisplay

        most = min(self.max_length, int(getattr(tokenizer, "model_max_length", None) or self.max_length))
        words = WordCandidates(model, tokenizer, most, beside_original=self.beside_original, batch_size=self.batch_size)
        vectors = None if self.word_vectors is None else WordVectors(self.word_vectors)
        with ProgressDisplay("words replaced", len(samples), unit="texts") as progress:
            progress.advance(reused=len(made))
            while len(made) < len(samples):
                first = len(made)
                part = samples[first : first + _CHUNK]
                keep(self._copies(part, first, words, vectors))
                progress.advance(done=len(part))

    def _copies(
        self, samples: Sequence[tuple[str, ...]], first: int, words: WordCandidates, vectors: WordVectors | None
    ) -> list[list[list[str]]]:
        """For each sample its copies, each with a text a column."""
        columns = [
            self._replaced(texts, [mix(self.seed, first + row, column) for row in range(len(texts))], words, vectors)
            for column, texts in enumerate(zip(*samples, strict=True))
        ]
        made = []
        for sample, *texts in zip(samples, *columns, strict=True):
            copies = dict.fromkeys(zip(*texts, strict=True))
            made.append([list(copy) for copy in copies if copy != sample])
        return made

    def _replaced(
        self, texts: Sequence[str], seeds: list[int], words: WordCandidates, vectors: WordVectors | None
    ) -> list[list[str]]:
        """Each text so often as there are copies, with its words replaced."""
        read = words.read(texts)
        drawn, masks = [], []
        for text, seed in zip(read, seeds, strict=True):
            own = [word for word in text.words if self._may_change(text, word, vectors)]
            # What is drawn for a text depends on its seed alone, so that no batch and no earlier stop changes it.
            draws = torch.rand(2, self.copies, len(own), generator=torch.Generator().manual_seed(seed))
            chosen = draws[0] < self.probability
            drawn.append((own, chosen, draws[1]))
            places = [word.token for word, ask in zip(own, chosen.any(0).tolist(), strict=True) if ask]
            masks += [(text, place) for place in places if place is not None]
        asked: list[tuple[int, int | None]] = [(id(text), place) for text, place in masks]
        answers = dict(zip(asked, words.ask(masks, self.candidates), strict=True))
        copies = []
        for text, (own, chosen, chances) in zip(read, drawn, strict=True):
            options = [
                answers.get((id(text), word.token), [])
                if word.token is not None or vectors is None
                else vectors.nearest(text.text[word.start : word.end].lower(), self.candidates)
                for word in own
            ]
            both = zip(chosen.tolist(), chances.tolist(), strict=True)
            copies.append([_with(text.text, own, options, *each) for each in both])
        return copies

    def _may_change(self, text: Text, word: Word, vectors: WordVectors | None) -> bool:
        if word.token is None and vectors is None:
            return False
        return text.text[word.start : word.end].lower() not in self.keep_words

    def _model(self) -> tuple[nn.Module, Any]:
        given = self.model if self.tokenizer is None else self.tokenizer
        model = self.model if isinstance(self.model, nn.Module) else load_masked_model(self.model, "WordReplacement")
        return model, load_tokenizer(given) if isinstance(given, str) else given

    def _digest(self, model: nn.Module, tokenizer: Any, samples: list[tuple[str, ...]]) -> str:
        """Of everything that the copies depend on."""
        names = ("copies", "probability", "candidates", "beside_original", "max_length", "seed")
        options = {name: getattr(self, name) for name in names} | {"keep_words": sorted(self.keep_words)}
        vectors = None if self.word_vectors is None else file_digest(self.word_vectors)
        content = [_FORM, options, content_digest(model, tokenizer), vectors, samples]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _with(text: str, words: Sequence[Word], options: Sequence[list[str]], chosen: list[bool], chances: Any) -> str:
    """The text with the chosen words replaced, from its end, so that places before stay right."""
    for word, candidates, replace, chance in reversed(list(zip(words, options, chosen, chances, strict=True))):
        if replace and candidates:
            other = candidates[min(int(chance * len(candidates)), len(candidates) - 1)]
            text = text[: word.start] + other + text[word.end :]
    return text
