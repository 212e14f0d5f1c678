"""Where runs go and how an earlier one is found: `runs/<name>/seed<k>/version_<n>/`. Imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError

RESULT = "result.json"
CHECKPOINTS = "checkpoints"


class RunError(RuntimeError):
    """A run ended by an error that is no mistake of its input; the message says where the traceback lies."""


@dataclass(frozen=True)
class RunPlace:
    """All runs of one name and seed.

    Attributes:
        root: the folder of all runs.
        name: the configuration's name.
        seed: the seed, None for a run without one.
    """

    root: Path
    name: str
    seed: int | None

    @property
    def folder(self) -> Path:
        """Folder that holds the versions."""
        return self.root / self.name / ("unseeded" if self.seed is None else f"seed{self.seed}")

    def versions(self) -> list[Path]:
        """Version folders, newest first."""
        found = [(int(m[1]), path) for path in self.folder.glob("version_*") if (m := re.search(r"_(\d+)$", path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def new(self) -> Path:
        """The next version's folder, not made yet."""
        taken = self.versions()
        return self.folder / f"version_{int(taken[0].name.rsplit('_', 1)[-1]) + 1 if taken else 0}"

    def newest_with(self, checkpoint: str) -> Path | None:
        """The newest version that has a checkpoint `last` or `best`."""
        return next((path for path in self.versions() if checkpoint_file(path, checkpoint).is_file()), None)

    def find(self, checkpoint: str) -> Path:
        """Like `newest_with`, but refuses if there is none.

        Raises:
            ConfigurationError: no version has that checkpoint.
        """
        run = self.newest_with(checkpoint)
        if run is None:
            raise ConfigurationError(
                f"--ckpt_path {checkpoint}: there is no {CHECKPOINTS}/{checkpoint}.ckpt below {self.folder}; "
                "fit first, or give a path"
            )
        return run


def checkpoint_file(run: Path, which: str) -> Path:
    """Path of a run's checkpoint `last` or `best`."""
    return run / CHECKPOINTS / f"{which}.ckpt"


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in, or the checkpoint's own folder."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def read_result(run: Path) -> dict[str, Any] | None:
    """A run's `result.json`, or None without one."""
    path = run / RESULT if run.is_dir() else run
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid JSON: test the run again to write it anew") from error
    parts = {"metrics": dict, "config": dict, "monitor": dict, "student": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in parts.items()):
        raise ConfigurationError(f"{path} is no result of kdlightning")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def results_below(paths: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every `result.json` at or below the given paths.

    Raises:
        ConfigurationError: a path that does not exist, or has no result below it.
    """
    seen: set[Path] = set()
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {text}")
        files = [path] if path.is_file() else sorted(path.rglob(RESULT))
        if not files:
            raise ConfigurationError(f"{text}: no finished run ({RESULT}) is below it")
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            content = read_result(file)
            assert content is not None
            yield file.parent, content
