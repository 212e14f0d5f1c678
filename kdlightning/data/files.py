"""Reading data files, with sentences for whatever is wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor, from_numpy

from kdlightning.errors import ConfigurationError, nearest

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def existing(path: str | Path | None, owner: str, what: str, way_out: str = "give path") -> Path:
    """The path, if there is something.

    Args:
        path: as the user gave it.
        owner: who asks, for the message.
        what: what should be there, for the message.
        way_out: what to do about it, for the message.

    Raises:
        ConfigurationError: if `path` is None or nothing is there.
    """
    if path is None or not str(path):
        raise ConfigurationError(f"{owner} needs path, {what}")
    found = Path(path).expanduser()
    if found.exists():
        return found
    beside = [entry.name for entry in found.parent.iterdir()] if found.parent.is_dir() else []
    close = nearest(found.name, beside) if beside else ""
    hint = close if close.startswith("; did") else f": {way_out}"
    raise ConfigurationError(f"{owner}: there is no {found}{hint}")


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked if its name ends with `.gz`.

    Raises:
        ConfigurationError: if the file is empty or its packing is damaged.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ConfigurationError(f"{path} is not a whole gzip file: fetch it again") from error
    if not data:
        raise ConfigurationError(f"{path} is empty")
    return data


def read_text(path: Path) -> str:
    """A UTF-8 file, unpacked if its name ends with `.gz`."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_idx(path: Path) -> Tensor:
    """An array in the idx format of MNIST, `.gz` or not; big-endian numbers as native ones.

    Raises:
        ConfigurationError: if the file is not idx, or shorter or longer than its header says.
    """
    data = read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise ConfigurationError(f"{path} is not an idx file")
    rank = data[3]
    shape = numpy.frombuffer(data, ">i4", count=rank, offset=4).tolist()
    kind = numpy.dtype(_IDX_TYPES[data[2]])
    expected = 4 + 4 * rank + int(numpy.prod(shape)) * kind.itemsize
    if len(data) != expected:
        raise ConfigurationError(f"{path} has {len(data)} bytes where its header says {expected}: fetch it again")
    array = numpy.frombuffer(data, kind, offset=4 + 4 * rank).reshape(shape)
    return from_numpy(array.astype(kind.newbyteorder("="), copy=True))


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, numpy.ndarray]:
    """The arrays of an `.npz` file (nothing is unpickled).

    Args:
        path: of the file.
        names: which arrays must be there; the others are given as well.

    Raises:
        ConfigurationError: if it is no such file, or an array is missing.
    """
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise ConfigurationError(f"{path} cannot be read as an .npz file of plain arrays") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ConfigurationError(f"{path} has no array {missing[0]}; it has {', '.join(arrays) or 'none'}")
    return arrays


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL, JSON (a list), CSV or TSV file with a header, each `.gz` or not.

    Raises:
        ConfigurationError: for another kind of file, a broken line, or a file without records.
    """
    name = path.name.removesuffix(".gz")
    text = read_text(path)
    if name.endswith(".jsonl"):
        records = [_parsed(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    elif name.endswith(".json"):
        records = _parsed(text, str(path))
    elif name.endswith((".csv", ".tsv")):
        records = list(csv.DictReader(io.StringIO(text), delimiter="," if name.endswith(".csv") else "\t"))
    else:
        raise ConfigurationError(f"{path}: records come as {', '.join(RECORD_SUFFIXES[::2])} (or any of them .gz)")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ConfigurationError(f"{path} must hold objects with named fields")
    if not records:
        raise ConfigurationError(f"{path} has no records")
    return records


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{where} is not JSON: {error.msg}") from error


def field(records: list[dict[str, Any]], name: str, owner: str) -> list[Any]:
    """One field of all records.

    Raises:
        ConfigurationError: naming the record that lacks it and the fields that there are.
    """
    for number, record in enumerate(records, 1):
        if record.get(name) is None:
            close = nearest(name, [str(key) for key in record])
            raise ConfigurationError(f"{owner}: record {number} has no field {name!r}{close}")
    return [record[name] for record in records]
