"""Words of like meaning, from a text file of vectors such as GloVe's."""

from __future__ import annotations

from pathlib import Path

import numpy

from kdlightning.errors import ConfigurationError


class WordVectors:
    """The nearest words by the cosine of their vectors.

    Args:
        path: a text file with a word and its numbers in each line, apart by spaces (GloVe's form; a first line of two
            numbers, as fastText has it, is passed over).

    Raises:
        ConfigurationError: there is no such file, or a line is of another form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise ConfigurationError(f"word_vectors: there is no file {path}: give GloVe's text file, or none")
        self.words: list[str] = []
        rows: list[numpy.ndarray] = []
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                word, _, numbers = line.rstrip("\n ").partition(" ")
                numbers_apart = numbers.split()
                if number == 1 and len(numbers_apart) < 2:
                    continue
                try:
                    row = numpy.array(numbers_apart, dtype=numpy.float32)
                except ValueError:
                    row = numpy.empty(0, dtype=numpy.float32)
                if not len(row) or (rows and len(row) != len(rows[0])):
                    raise ConfigurationError(
                        f"word_vectors: {path}, line {number} is no word with its vector: give GloVe's text file"
                    )
                self.words.append(word)
                rows.append(row)
        if not rows:
            raise ConfigurationError(f"word_vectors: {path} has none")
        matrix = numpy.stack(rows)
        self._vectors = matrix / numpy.maximum(numpy.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
        self._places = {word: place for place, word in enumerate(self.words)}
        self._found: dict[tuple[str, int], list[str]] = {}

    def nearest(self, word: str, count: int) -> list[str]:
        """The nearest other words, the nearest first; none for a word without a vector."""
        place = self._places.get(word)
        if place is None:
            return []
        if (word, count) not in self._found:
            likeness = self._vectors @ self._vectors[place]
            likeness[place] = -numpy.inf
            most = min(count, len(self.words) - 1)
            best: list[int] = numpy.argpartition(-likeness, most - 1)[:most].tolist() if most else []
            self._found[word, count] = [self.words[p] for p in sorted(best, key=lambda p: (-float(likeness[p]), p))]
        return self._found[word, count]
