"""Records, given in memory or as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError, nearest

Record = Mapping[str, Any]


def load_records(records: str | Path | Sequence[Record], owner: str) -> list[Record]:
    """The records themselves, or those of a JSONL, JSON, CSV or TSV file, each `.gz` or not.

    Args:
        records: a path or the records.
        owner: who asks, for the message.

    Raises:
        ConfigurationError: no such file, not such a file, or nothing in it.
    """
    if isinstance(records, (str, Path)):
        # Imported here: it needs numpy and torch, and records in memory do not.
        from kdlightning.data.files import existing, read_records

        return list(read_records(existing(records, owner, "a JSONL file of records", "give its path")))
    if not records:
        raise ConfigurationError(f"{owner}: there are no records")
    return list(records)


def field_of(record: Record, name: str) -> Any:
    """A field's value; `a.b` looks inside an object, also for a name that has dots of its own (`outputs.phi-1.5`).

    Raises:
        ConfigurationError: the record has no such field.
    """
    value: Any = record
    rest = name
    while not isinstance(value, Mapping) or rest not in value:
        part, dot, rest = rest.partition(".")
        if not isinstance(value, Mapping) or not dot or part not in value:
            known = value if isinstance(value, Mapping) else record
            raise ConfigurationError(f"the records have no field {name!r}{nearest(part, map(str, known))}")
        value = value[part]
    return value[rest]
