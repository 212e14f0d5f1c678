"""Records from files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.generation.records import field_of, read_records

ROWS = [{"a": 1}, {"a": 2}]


def test_reads_lines_and_lists_plain_and_compressed(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
        assert read_records(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("missing.jsonl", None, "no file"),
        ("a.csv", b"a,b", "read from"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "line 2"),
        ("a.jsonl", b"[1]\n", "list of objects"),
        ("a.json", b"{}", "list of objects"),
        ("a.jsonl", b"\n", "no records"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.json", b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: bytes | None, named: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=named) as caught:
        read_records(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_dotted_fields_look_inside() -> None:
    record = {"a": {"b": 3}, "x.y": 4}
    assert field_of(record, "a.b") == 3
    assert field_of(record, "x.y") == 4


def test_wrong_field_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="question"):
        field_of({"question": 1}, "qestion")
    with pytest.raises(ConfigurationError, match="solution"):
        field_of({"m": {"solution": 1}}, "m.soluton")
