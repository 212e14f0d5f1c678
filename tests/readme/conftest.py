"""Runs the blocks of a Markdown page from top to bottom, as a reader would type them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line on which the text begins (from 1)."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], page[: match.start(2)].count("\n") + 1) for match in found]


class Page:
    """A page at work in a folder of its own.

    * A Python or YAML block that opens with `# name.py` or `# name.yaml` is written to that file.
    * Other Python blocks run in one namespace, in their order.
    * `$ kdlightning …` lines of text blocks run in this process, fits for an epoch; what stands below one is compared
      with what it prints.
    """

    def __init__(self, path: Path, capture: Any) -> None:
        self.path = path
        self.capture = capture
        self.namespace: dict[str, Any] = {"__name__": path.stem}
        self.blocks = blocks_of(path.read_text(encoding="utf-8"))
        self.commands: list[str] = []

    def run(self) -> None:
        for block in self.blocks:
            name = re.match(r"# ([\w./-]+\.(?:py|yaml|jsonl))\n", block.text)
            if name:
                Path(name[1]).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                code = compile("\n" * (block.line - 1) + block.text, str(self.path), "exec")
                exec(code, self.namespace)
            elif block.language == "text":
                self.run_commands(block)
            elif block.language == "yaml":
                raise AssertionError(f"{self.path.name}:{block.line}: a YAML block must open with its file's name")

    def run_commands(self, block: Block) -> None:
        parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
        for part in parts:
            line, _, expected = part.partition("\n")
            printed = self.run_command(line)
            if expected.strip():
                assert printed.rstrip() == expected.rstrip(), (
                    f"{self.path.name}:{block.line}: `{line}` prints otherwise"
                )

    def run_command(self, line: str) -> str:
        from kdlightning.cli import main

        words = [word for word in shlex.split(line, comments=True) if not word.startswith("PYTHONPATH=")]
        assert words[0] == "kdlightning", line
        words = words[1:]
        if words[0] == "fit":
            # An epoch will do; a resumed run needs one more to have anything left.
            words.append(f"--trainer.max_epochs={2 if '--ckpt_path' in words else 1}")
        if words[0] == "run":
            words.append("--dry-run")
        self.capture.readouterr()
        code = main(words)
        captured = self.capture.readouterr()
        assert code == 0, f"{self.path.name}: `{line}`: {captured.err}"
        self.commands.append(line)
        return captured.out


@pytest.fixture
def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Callable[[str], Page]]:
    """Runs a page of the repository in an empty folder, which is importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def run(name: str) -> Page:
        page = Page(ROOT / name, capsys)
        page.run()
        return page

    yield run
    for module in set(sys.modules) - before:
        file = getattr(sys.modules[module], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[module]
