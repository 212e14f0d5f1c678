"""Linter, formatter and type checker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kdlightning", "callbacks", "configs", "tests", "benchmarks", "docs", "notebooks")


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_ruff_finds_nothing():
    done = run("ruff", "check", *FOLDERS, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_ruff_would_format_nothing():
    done = run("ruff", "format", "--check", *FOLDERS, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_mypy_finds_nothing(tmp_path):
    # The checker reads folders, so the mapped ones are laid where an installed package has them.
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kdlightning", tmp_path / "kdlightning", ignore=ignore)
    shutil.copytree(ROOT / "callbacks", tmp_path / "kdlightning" / "callbacks", ignore=ignore)
    environment = {**os.environ, "MYPYPATH": str(tmp_path)}
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    done = run("mypy", *options, "-p", "kdlightning", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
