"""Reads records from files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError, nearest

Record = Mapping[str, Any]


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file (`.jsonl`, `.jsonl.gz`) or of one JSON list (`.json`, `.json.gz`).

    Raises:
        ConfigurationError: no such file, not such a file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"no file {path}")
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    if not lines and not path.name.removesuffix(".gz").endswith(".json"):
        raise ConfigurationError(f"{path}: records are read from .jsonl, .jsonl.gz, .json or .json.gz")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            records = _lines(path, file) if lines else json.load(file)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ConfigurationError(f"{path}: records are a list of objects")
    if not records:
        raise ConfigurationError(f"{path} holds no records")
    return records


def _lines(path: Path, file: Iterable[str]) -> list[Any]:
    records = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ConfigurationError(f"{path}, line {number}: not JSON ({error.msg})") from error
    return records


def field_of(record: Record, name: str) -> Any:
    """A field's value; `a.b` looks inside an object.

    Raises:
        ConfigurationError: the record has no such field.
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = value if isinstance(value, Mapping) else record
            raise ConfigurationError(f"the records have no field {name!r}{nearest(part, map(str, known))}")
        value = value[part]
    return value
