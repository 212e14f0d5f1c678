"""Few-shot banks: demonstrations that stand in a prompt before its question."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kdlightning.blackbox.base import Problem
from kdlightning.blackbox.templates import SHIPPED
from kdlightning.errors import ConfigurationError
from kdlightning.generation.records import Record, field_of, load_records

Choice = Literal["first", "drawn"]


@dataclass(frozen=True)
class Demonstrations:
    """A bank, and how k of it are chosen for each prompt.

    Made by `load_demonstrations`. Two of equal content are equal, so a method can keep one among its options.

    Attributes:
        bank: the demonstrations, each with at least the named fields; none for prompts without.
        count: k.
        choice: "first" takes the first k, the same for every record; "drawn" takes k by the seed and the record's
            number, the same in every process and version of Python.
        seed: of the draws.
        question_field: field that a demonstration is told from a record by.
    """

    bank: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
    choice: Choice = "first"
    seed: int = 0
    question_field: str = "question"

    def __call__(self, problem: Problem) -> list[Mapping[str, Any]]:
        """The demonstrations for a record's prompt, in the order in which they are shown.

        Never the record itself, nor another one with its question (but for case and whitespace); so there are fewer
        than k where the bank holds no k others.
        """
        order = list(range(len(self.bank)))
        if self.choice == "drawn":
            # Of Python's random numbers only random() is promised to stay as it is.
            draw = random.Random(f"{self.seed}:{problem.number}:{problem.draw}").random
            order = sorted(order, key=lambda _: draw())
        own = _plain(problem.question)
        others = (self.bank[place] for place in order if _plain(self.bank[place][self.question_field]) != own)
        return [shown for shown, _ in zip(others, range(self.count), strict=False)]


def load_demonstrations(
    source: str | Path | Sequence[Record] | None,
    fields: Sequence[str] | Mapping[str, str],
    *,
    owner: str,
    lists: Sequence[str] = (),
    count: int | None = None,
    choice: Choice = "first",
    seed: int = 0,
    question_field: str = "question",
) -> Demonstrations:
    """Reads a bank.

    Args:
        source: a JSONL, JSON, CSV or TSV file, or the name of one that comes with kdlightning
            (`mt_cot/demonstrations.jsonl`); the demonstrations themselves; None is no demonstration.
        fields: names that a template reads and that every demonstration must have, not empty; or by name the field of
            the file, which may look inside objects (`{rationale: outputs.why}`). Further fields are handed on as they
            are.
        owner: the method, for messages.
        lists: names of further fields that hold a list, empty where a demonstration has none.
        count: k; None is the whole bank.
        choice: "first" or "drawn", as `Demonstrations` says.
        seed: of the draws.
        question_field: the name, among the fields, of the question.

    Raises:
        ConfigurationError: no such file, nothing in it, a field that is missing or empty, no list where there should be
            one, a k below 1 or above the number of demonstrations, or a choice that is none.
    """
    if choice not in get_args(Choice):
        raise ConfigurationError(f"{owner}: demonstrations are first or drawn, not {choice!r}")
    if source is None:
        if count:
            raise ConfigurationError(f"{owner}: {count} demonstrations are asked for, and there is no bank: give one")
        return Demonstrations(choice=choice, seed=seed, question_field=question_field)
    where = f"{owner}: demonstrations"
    names = dict(fields) if isinstance(fields, Mapping) else {name: name for name in fields}
    records = load_records(_found(source), where)
    bank = tuple(_read(record, number, names, lists, where) for number, record in enumerate(records))
    count = len(bank) if count is None else count
    if not 1 <= count <= len(bank):
        raise ConfigurationError(f"{where}: {count} are asked for; the bank has {len(bank)}, so give 1 to {len(bank)}")
    return Demonstrations(bank, count, choice, seed, question_field)


def _found(source: str | Path | Sequence[Record]) -> str | Path | Sequence[Record]:
    if isinstance(source, (str, Path)) and not Path(source).expanduser().is_file() and (SHIPPED / source).is_file():
        return SHIPPED / source
    return source


def _read(record: Record, number: int, names: Mapping[str, str], lists: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ConfigurationError(f"{where}: number {number + 1} holds no fields but a {type(record).__name__}")
    shown = dict(record)
    for name, source in names.items():
        try:
            value = field_of(record, source)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: number {number + 1}: {error}") from error
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise ConfigurationError(f"{where}: number {number + 1} has nothing in {source!r}")
        shown[name] = value.strip() if isinstance(value, str) else value
    for name in lists:
        shown[name] = record.get(name) or []
        if not isinstance(shown[name], (list, tuple)):
            raise ConfigurationError(f"{where}: number {number + 1} holds no list in {name!r}")
    return shown


def _plain(text: Any) -> str:
    return " ".join(str(text).split()).casefold()
