"""Files are read, or refused in one sentence."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy
import pytest
import torch

from kdlightning.data.files import existing, field, read_arrays, read_idx, read_records, read_text
from kdlightning.errors import ConfigurationError


def idx(array: numpy.ndarray, code: int) -> bytes:
    header = struct.pack(">BBBB", 0, 0, code, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_of_bytes_and_of_big_endian_numbers(tmp_path: Path, packed: bool) -> None:
    for code, kind in ((0x08, "u1"), (0x0B, ">i2"), (0x0D, ">f4")):
        array = (numpy.arange(12) * 20).reshape(3, 4).astype(kind)
        path = tmp_path / ("x.gz" if packed else "x")
        path.write_bytes(gzip.compress(idx(array, code)) if packed else idx(array, code))
        assert torch.equal(read_idx(path).double(), torch.from_numpy(array.astype("f8")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x", b"", "is empty"),
        ("x", b"PNG...", "is not an idx file"),
        ("x", idx(numpy.zeros((2, 3), "u1"), 8)[:-1], "17 bytes where its header says 18: fetch it again"),
        ("x.gz", gzip.compress(b"abc")[:-4], "not a whole gzip file"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_idx(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "x, y", "label": "1"}\n\n{"text": "z\u2028", "label": "0"}\n'),
        ("a.json", '[{"text": "x, y", "label": "1"}, {"text": "z\u2028", "label": "0"}]'),
        ("a.csv", 'text,label\n"x, y",1\nz\u2028,0\n'),
        ("a.tsv", "text\tlabel\nx, y\t1\nz\u2028\t0\n"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_records(tmp_path: Path, name: str, text: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read_records(path) == [{"text": "x, y", "label": "1"}, {"text": "z\u2028", "label": "0"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", "[1, 2]\n", "must hold objects"),
        ("a.json", "{}", "must hold objects"),
        ("a.csv", "text,label\n", "has no records"),
        ("a.parquet", "x", "records come as .jsonl, .json, .csv, .tsv"),
        ("a.jsonl", "", "is empty"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_records(tmp_path / name)


def test_missing_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="record 2 has no field 'txt'; did you mean text"):
        field([{"txt": "a"}, {"text": "b"}], "txt", "Texts")


def test_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.npz").touch()
    with pytest.raises(ConfigurationError, match="there is no .*digit.npz; did you mean digits.npz"):
        existing(tmp_path / "digit.npz", "Arrays", "a file")
    with pytest.raises(ConfigurationError, match="nowhere/x: give path"):
        existing(tmp_path / "nowhere" / "x", "Arrays", "a file")
    with pytest.raises(ConfigurationError, match="Arrays needs path, a file"):
        existing(None, "Arrays", "a file")


def test_arrays_are_read_without_unpickling(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    numpy.savez(path, x=numpy.arange(3), names=numpy.array(["a"]))
    assert read_arrays(path, ["x"])["x"].tolist() == [0, 1, 2]
    with pytest.raises(ConfigurationError, match="has no array y; it has x, names"):
        read_arrays(path, ["y"])
    numpy.savez(path, x=numpy.array([object()], dtype=object))
    with pytest.raises(ConfigurationError, match="plain arrays"):
        read_arrays(path, ["x"])


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8 text .byte 3"):
        read_text(tmp_path / "a.txt")
