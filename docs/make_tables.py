"""Writes README's table of methods from the headers of the shipped configurations, and the tables of results from
`benchmarks/results/`.

`python docs/make_tables.py` rewrites them, `python docs/make_tables.py --check` only says whether they are up to date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from kdlightning.commands.shipped import read_header

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- methods: written by docs/make_tables.py -->"
END = "<!-- methods end -->"
_ACCESS = {
    "white_box": "**White-box**: the teacher's outputs, probabilities and insides are at hand.",
    "black_box": "**Black-box**: of the teacher only its text is seen.",
}
_MODES = ("offline", "online", "self", "on_policy", "black_box")
_KNOWLEDGE = ("response", "feature", "relation", "text")


def headers(folder: Path) -> list[dict[str, str]]:
    """The header of each configuration below a folder, with its name under `config`."""
    paths = sorted(folder.rglob("*.yaml"))
    return [{**read_header(path), "config": path.relative_to(folder).with_suffix("").as_posix()} for path in paths]


def tables(found: list[dict[str, str]]) -> str:
    """All tables, as Markdown."""
    methods = [header for header in found if "kind" not in header]
    parts = []
    for access, title in _ACCESS.items():
        rows = sorted((header for header in methods if header.get("access") == access), key=_order)
        if rows:
            columns = ("mode", "knowledge") if access == "white_box" else ("ability",)
            parts += [title, _methods(rows, columns)]
    others = [header for header in found if "kind" in header]
    if others:
        parts += ["**Recipes and baselines**: several stages in one go, and students and teachers on labels alone."]
        parts += [_others(sorted(others, key=lambda header: (header["kind"] != "recipe", header["config"])))]
    return "\n\n".join(parts)


def _order(header: dict[str, str]) -> tuple[int, int, str]:
    mode, knowledge = header.get("mode", ""), header.get("knowledge", "")
    return (
        _MODES.index(mode) if mode in _MODES else len(_MODES),
        _KNOWLEDGE.index(knowledge) if knowledge in _KNOWLEDGE else len(_KNOWLEDGE),
        header["config"],
    )


def _methods(rows: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    lines = [f"| {' | '.join(columns)} | method | configuration | task | paper |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for header in rows:
        cells = [_words(header.get(column, "")) for column in columns]
        cells += [header.get("name", ""), f"`{header['config']}`", _words(header.get("task", "")), paper(header)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _others(rows: list[dict[str, str]]) -> str:
    lines = ["| kind | configuration | what it is |", "|---|---|---|"]
    for header in rows:
        what = header.get("summary") or header.get("name", "")
        lines.append(f"| {header['kind']} | `{header['config']}` | {what} |")
    return "\n".join(lines)


def _words(value: str) -> str:
    return {"causal_lm": "causal LM", "cot": "CoT", "icl": "ICL", "on_policy": "on-policy"}.get(
        value, value.replace("_", " ")
    )


def paper(header: dict[str, str]) -> str:
    """Authors and year, linked to arXiv where the header has its number."""
    text = header.get("paper", "")
    authors = re.match(r"[^:]*?\b(?:19|20)\d\d\b", text)
    short = authors[0] if authors and len(authors[0]) < 60 else text
    number = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    return f"[{short}](https://arxiv.org/abs/{number[1]})" if number else short


def with_block(page: str, begin: str, end: str, content: str) -> str:
    """The page with new content between two comments.

    Raises:
        ValueError: the comments are missing.
    """
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin!r} … {end!r}")
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def with_tables(readme: str, content: str) -> str:
    """The README with a new table of methods."""
    return with_block(readme, BEGIN, END, content)


def results() -> dict[str, str]:
    """The tables of the benchmarks by name, as their scripts print them."""
    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        quickstart: Any = importlib.import_module("quickstart")
        groups: Any = importlib.import_module("accuracy_groups")
        accuracy: Any = importlib.import_module("accuracy_tables")
        weights: Any = importlib.import_module("weights")
        losses: Any = importlib.import_module("losses_tables")
        label_free: Any = importlib.import_module("label_free")
        encoders: Any = importlib.import_module("encoders")
        symbolic: Any = importlib.import_module("symbolic")
    finally:
        sys.path.remove(str(folder))
    return {
        "quickstart": quickstart.table(json.loads(quickstart.RESULTS.read_text())),
        "accuracy": accuracy.tables(groups.groups().values()),
        "weights": weights.table(),
        "losses": losses.speed_table(),
        "verification": losses.verification_table(),
        "label_free": label_free.table(),
        "symbolic": symbolic.table(),
        "encoders": encoders.table(),
    }


PAGES = {
    "README.md": ("quickstart",),
    "benchmarks/README.md": ("quickstart", "accuracy", "weights", "losses", "label_free", "symbolic", "encoders"),
    "docs/verification.md": ("verification",),
}
"""Which tables of results a page holds."""


def pages() -> dict[Path, str]:
    """What each page should hold."""
    found, made = results(), {}
    for name, contents in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for content in contents:
            text = with_block(text, f"<!-- {content} results -->", f"<!-- {content} results end -->", found[content])
        if name == "README.md":
            text = with_tables(text, tables(headers(ROOT / "configs")))
        made[ROOT / name] = text
    return made


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks; 1 if a check finds an old table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is old")
    options = parser.parse_args(arguments)
    old = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in old.items():
        if options.check:
            print(f"{path.relative_to(ROOT)}: a table is old: run python docs/make_tables.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if old and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
