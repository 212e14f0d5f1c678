"""A generator that repeats what was once answered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Capability, Completion, Origin, Request, TextGenerator, require
from kdlightning.generation.records import Record, field_of, load_records


@dataclass(frozen=True)
class _Row:
    prompt: str
    texts: Mapping[str, str | None]


class RecordedGenerator(TextGenerator):
    """Answers from stored records, and refuses what they lack; it never invents.

    A request is looked up by `request.origin.about` (the bare question, say), or without an origin by its prompt or
    last message. In methods of several rounds each step has its own field, and a later step finds the row whose
    earlier texts are those that the request was made from, so sample n of a step stays with sample n of the one
    before. Records with one prompt, and lists in a field, are samples 0, 1, … in the order of the file. Sampling
    options play no part: they were those of the recording.

    Args:
        records: a JSON Lines file, or the records themselves.
        prompt_field: field that requests are looked up by.
        answer_field: field of the answer, or one field a step, for example
            `{"rationale": "llm_rationale", "answer": "llm_answer"}`. A dotted name looks inside objects.
    """

    capabilities: frozenset[Capability] = frozenset({"text"})
    batch_size = 64

    def __init__(
        self,
        records: str | Path | Sequence[Record],
        prompt_field: str = "prompt",
        answer_field: str | dict[str, str] = "answer",
    ) -> None:
        self.source = str(records) if isinstance(records, (str, Path)) else "the records"
        fields = {"": answer_field} if isinstance(answer_field, str) else dict(answer_field)
        if not fields:
            raise ConfigurationError("answer_field names no field")
        self.steps = tuple(fields)
        rows: dict[str, list[_Row]] = {}
        for number, record in enumerate(load_records(records, type(self).__name__)):
            for row in _rows(record, number, prompt_field, fields):
                rows.setdefault(row.prompt, []).append(row)
        self._rows = rows
        self._words: dict[str, frozenset[str]] = {}
        self._identity = f"recorded:{_digest(rows)}"

    @property
    def identity(self) -> str:
        """The hash of all prompts and answers: other records are another teacher."""
        return self._identity

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Looks each request up; a sample that was not recorded is a failure with the nearest recorded prompt.

        Raises:
            ConfigurationError: a request is of a step that the records have no field for, or wants what only a model
                can do: a contrast, or an answer that begins as it is told.
        """
        for request in requests:
            if not request.needs <= self.capabilities:
                require(self, request.needs, "this request")
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        origin = request.origin or Origin(request.text)
        step = self._step(origin)
        rows = self._rows.get(origin.about.strip())
        if rows is None:
            return Answer.refused(request, self._unknown(origin.about))
        given = {name: text.strip() for name, text in origin.given.items() if name in self.steps}
        rows = [row for row in rows if all((row.texts[name] or "").strip() == given[name] for name in given)]
        texts = [row.texts[step] for row in rows]
        answer = Answer(request)
        for number in request.numbers:
            text = texts[number] if number < len(texts) else None
            if text is not None:
                answer.completions[number] = Completion(text)
            elif number < len(texts):
                answer.failures[number] = f"{self.source}: the {step or 'answer'} to {_short(origin.about)} is empty"
            else:
                answer.failures[number] = (
                    f"{self.source}: {len(texts)} recorded answers to {_short(origin.about)}, and number "
                    f"{number + 1} was asked for"
                )
        return answer

    def _step(self, origin: Origin) -> str:
        if self.steps == ("",) and not origin.given:
            return ""
        if origin.step not in self.steps:
            named = [step for step in self.steps if step]
            raise ConfigurationError(
                f"{self.source}: no field for the step {origin.step!r}; give answer_field as "
                f"{{{origin.step}: FIELD}}{nearest(origin.step, named) if named else ''}"
            )
        return origin.step

    def _unknown(self, about: str) -> str:
        words = _words(about)
        if not self._words:
            self._words = {prompt: _words(prompt) for prompt in self._rows}
        near = max(self._words, key=lambda prompt: len(words & self._words[prompt]), default="")
        hint = f"; the nearest is {_short(near)}" if words & self._words.get(near, frozenset()) else ""
        return f"{self.source}: no recorded answer to {_short(about)}{hint}"


def _rows(record: Record, number: int, prompt_field: str, fields: Mapping[str, str]) -> list[_Row]:
    prompt = str(field_of(record, prompt_field)).strip()
    columns: dict[str, list[Any]] = {}
    for step, name in fields.items():
        value = field_of(record, name)
        columns[step] = list(value) if isinstance(value, (list, tuple)) else [value]
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise ConfigurationError(
            f"record {number}: its answer fields hold {' and '.join(map(str, sorted(lengths)))} samples, not one number"
        )
    return [
        _Row(prompt, {step: _text(column[sample]) for step, column in columns.items()})
        for sample in range(lengths.pop())
    ]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise ConfigurationError(f"an answer field holds a {type(value).__name__}, and answers are texts")


def _digest(rows: Mapping[str, list[_Row]]) -> str:
    digest = hashlib.sha256()
    for prompt, group in rows.items():
        digest.update(json.dumps([prompt, [dict(row.texts) for row in group]], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 1] + "…")
