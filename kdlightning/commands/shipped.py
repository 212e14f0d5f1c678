"""Configurations by name: where they lie, how a name becomes a path, what their headers say. Imports no torch."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from kdlightning.errors import ConfigurationError, nearest

_HEADER = re.compile(r"^#\s*([a-z_]+):\s*(.*?)\s*$")


@lru_cache(maxsize=1)
def config_folder() -> Path:
    """The folder of the shipped configurations."""
    spec = importlib.util.find_spec("kdlightning.configs")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("the shipped configurations are missing: install kdlightning again")
    return Path(spec.submodule_search_locations[0])


def shipped() -> dict[str, Path]:
    """Path of each shipped configuration by its name, for example `offline/response/kd`."""
    folder = config_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(text: str, *, below: str = "") -> Path:
    """The file that `text` means: a path, a name below `configs/`, or the end of exactly one name.

    Args:
        text: what the user wrote.
        below: folder whose names may be written alone, for example `recipes`.

    Raises:
        ConfigurationError: no such file or name, or a name that several configurations end with.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigurationError(f"{text} is a folder, not a configuration: name one of its files")
    names = shipped()
    name = text.removeprefix("./").removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml")
    for candidate in (name, f"{below}/{name}"):
        if candidate in names:
            return names[candidate]
    ends = [known for known in names if known.endswith(f"/{name}")]
    if len(ends) == 1:
        return names[ends[0]]
    if ends:
        raise ConfigurationError(f"configuration {text!r} may be {' or '.join(ends)}: write one of them")
    known = [n for n in names if n.startswith(below)] if below else list(names)
    close = nearest(name, [*known, *{n.rsplit("/", 1)[-1] for n in known}])
    raise ConfigurationError(f"no configuration {text!r}, neither a file nor a shipped name{close}")


def config_name(path: Path) -> str:
    """What runs of the file are called: its name below `configs/`, the run that saved it, or the file's own name."""
    resolved = path.resolve()
    if resolved.is_relative_to(config_folder().resolve()):
        return resolved.relative_to(config_folder().resolve()).with_suffix("").as_posix()
    return read_header(path).get("run") or path.stem


def read_header(path: Path) -> dict[str, str]:
    """The `# key: value` lines that open a configuration."""
    header: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                break
            match = _HEADER.match(line)
            if match:
                header[match[1]] = match[2]
    return header
