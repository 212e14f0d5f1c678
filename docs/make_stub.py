"""Writes `kdlightning/__init__.pyi` from the lazy names, for editors and type checkers: `python docs/make_stub.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kdlightning

PATH = Path(__file__).resolve().parents[1] / "kdlightning" / "__init__.pyi"
HEAD = '"""The lazy names, for editors and type checkers; written by docs/make_stub.py from `_EXPORTS`."""'


def stub() -> str:
    """The file's text before it is formatted."""
    lines = [
        f"from {module} import {name} as {name}" for module, names in kdlightning._EXPORTS.items() for name in names
    ]
    private = ["_EXPORTS: dict[str, tuple[str, ...]]", "_HOME: dict[str, str]"]
    return "\n".join([HEAD, "", *lines, "", "__version__: str", *private, ""])


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
    for command in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(PATH)], check=True)
