"""`kdlightning list`: what ships, read from the headers of the configurations and nothing else."""

from __future__ import annotations

import argparse
import json
import shutil
import sys

from kdlightning.commands.options import Parser
from kdlightning.commands.shipped import read_header, shipped
from kdlightning.errors import ConfigurationError, nearest

_FILTERS = ("access", "mode", "knowledge", "ability", "task")
_KINDS = {"baseline": "labels alone: teachers, and students to compare with", "recipe": "recipes"}
_MODES = ("offline", "online", "self", "on_policy", "black_box")


def main(arguments: list[str]) -> int:
    """Prints the table, or the headers as JSON."""
    options = _parse(arguments)
    headers = [{**read_header(path), "config": name} for name, path in shipped().items()]
    for key in _FILTERS:
        headers = _keep(headers, key, getattr(options, key))
    if options.text:
        wanted = options.text.lower()
        headers = [header for header in headers if any(wanted in value.lower() for value in header.values())]
    if options.json:
        print(json.dumps(headers, indent=2))
    else:
        print(table(headers) if headers else "nothing that ships fits: `kdlightning list` prints everything")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("list")
    parser.add_argument("text", nargs="?")
    for key in _FILTERS:
        parser.add_argument(f"--{key}")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _keep(headers: list[dict[str, str]], key: str, value: str | None) -> list[dict[str, str]]:
    if value is None:
        return headers
    wanted = value.replace("-", "_").lower()
    known = {word for read in shipped().values() for word in _words(read_header(read).get(key, ""))}
    if wanted not in known:
        raise ConfigurationError(f"--{key} {value}: nothing that ships has it{nearest(wanted, known)}")
    return [header for header in headers if wanted in _words(header.get(key, ""))]


def _words(value: str) -> list[str]:
    """What a header says of one thing; a recipe may name several, with commas."""
    return [word for part in value.split(",") if (word := part.strip().replace("-", "_").lower())]


def table(headers: list[dict[str, str]]) -> str:
    """The headers in groups of access, mode and knowledge (or ability), recipes last."""
    groups: dict[tuple[int, str], list[tuple[str, str, str, str]]] = {}
    for header in headers:
        row = (header["config"], header.get("name", ""), header.get("task", ""), header.get("paper", ""))
        if header.get("kind") == "recipe":
            row = (header["config"], header.get("summary", ""), "", "")
        groups.setdefault(_group(header), []).append(row)
    rows = [row for group in groups.values() for row in group]
    widths = [max((len(row[i]) for row in rows if row[2]), default=0) for i in (1, 2)]
    first = max(len(row[0]) for row in rows)
    # A pipe gets whole lines, a terminal what fits.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    lines = []
    for key in sorted(groups):
        lines += ["", key[1]]
        for config, name, task, paper in groups[key]:
            line = f"  {config:<{first}}  {name:<{widths[0]}}  {task:<{widths[1]}}  {paper}".rstrip()
            lines.append(line if len(line) <= room else line[: room - 1] + "…")
    return "\n".join([*lines[1:], "", "use: kdlightning fit -c CONFIG, kdlightning run RECIPE"])


def _group(header: dict[str, str]) -> tuple[int, str]:
    if header.get("kind") in _KINDS:
        return 90 + list(_KINDS).index(header["kind"]), _KINDS[header["kind"]]
    access, mode = header.get("access", ""), header.get("mode", "")
    detail = header.get("ability", "") if mode == "black_box" else header.get("knowledge", "")
    order = _MODES.index(mode) if mode in _MODES else len(_MODES)
    words = [access.replace("_", "-"), *([] if mode == "black_box" else [mode.replace("_", "-")]), detail]
    return order, " · ".join(word for word in words if word and word != "none")
