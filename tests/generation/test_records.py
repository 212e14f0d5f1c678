"""Records from memory and from files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.generation.records import field_of, load_records

ROWS = [{"a": 1}, {"a": 2}]


def test_reads_files_and_takes_records_as_they_are(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    for source in (tmp_path / "a.jsonl", str(tmp_path / "a.jsonl.gz"), ROWS):
        assert load_records(source, "Somebody") == ROWS


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("missing.jsonl", None, "Somebody: there is no .*missing.jsonl"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "line 2"),
        ("a.jsonl.gz", b"not gzip", "gzip"),
        ("a.txt", b"a", "records come as"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: bytes | None, named: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=named) as caught:
        load_records(tmp_path / name, "Somebody")
    assert "\n" not in str(caught.value)


def test_no_records_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Somebody: there are no records"):
        load_records([], "Somebody")


def test_dotted_fields_look_inside() -> None:
    record = {"a": {"b": 3}, "x.y": 4}
    assert field_of(record, "a.b") == 3
    assert field_of(record, "x.y") == 4


def test_wrong_field_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="question"):
        field_of({"question": 1}, "qestion")
    with pytest.raises(ConfigurationError, match="solution"):
        field_of({"m": {"solution": 1}}, "m.soluton")
