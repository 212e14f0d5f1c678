"""Where the training, validation and test parts of labelled or raw text are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdlightning.data.files import RECORD_SUFFIXES
from kdlightning.errors import ConfigurationError, MissingExtraError, nearest

STEMS = {"train": ("train",), "val": ("val", "dev", "valid", "validation"), "test": ("test",)}
"""What the files of a folder, and the splits of a named data set, are called."""


def part_file(folder: Path, part: str, ending: str = "", suffixes: Sequence[str] = RECORD_SUFFIXES) -> Path | None:
    """The file of a part in a folder, or None.

    Args:
        folder: where to look.
        part: "train", "val" or "test".
        ending: what the names have behind `train`, `dev` and `test`.
        suffixes: kinds of file, the first one that is there is taken.
    """
    for stem in STEMS[part]:
        for suffix in suffixes:
            if (folder / f"{stem}{ending}{suffix}").is_file():
                return folder / f"{stem}{ending}{suffix}"
    return None


def named_splits(name: str, config: str | None) -> dict[str, Any]:
    """The splits of a data set of the `datasets` library for "train", "val" and "test"; None for those it lacks.

    Args:
        name: on the hub, or a folder that `save_to_disk` has written.
        config: its configuration.

    Raises:
        ConfigurationError: it cannot be loaded, or has no train split.
        MissingExtraError: the library is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "datasets", "dataset_name") from error
    try:
        local = Path(name).expanduser()
        found: Any = (
            datasets.load_from_disk(str(local))
            if (local / "dataset_dict.json").exists()
            else datasets.load_dataset(name, config)
        )
    except Exception as error:  # whatever the hub, the network or a script raises
        reason = str(error).split("\n")[0][:200]
        raise ConfigurationError(f"dataset_name {name!r} cannot be loaded: {reason}") from error
    splits = {part: next((found[stem] for stem in stems if stem in found), None) for part, stems in STEMS.items()}
    if splits["train"] is None:
        raise ConfigurationError(f"data set {name!r} has no train split; it has {', '.join(found)}")
    return splits


def check_columns(name: str, columns: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises ConfigurationError if a named data set lacks a field."""
    for field in wanted:
        if field not in columns:
            raise ConfigurationError(f"data set {name!r} has no field {field!r}{nearest(field, columns)}")
