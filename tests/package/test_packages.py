"""The package list, the lazy names, the mapped folders and the rules of who may import whom."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdlightning

ROOT = Path(__file__).resolve().parents[2]
MAPPED = {"callbacks": "kdlightning.callbacks", "configs": "kdlightning.configs"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines() if line.strip() and not line.strip().startswith("#")]


def folders_with_code() -> set[str]:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "kdlightning").rglob("__init__.py")}
    return found | set(MAPPED.values())


def test_setup_cfg_lists_every_package():
    assert set(lines(setup_cfg()["options"]["packages"])) == folders_with_code()


def test_every_folder_with_python_files_is_a_package():
    for folder in {path.parent for path in (ROOT / "kdlightning").rglob("*.py")}:
        assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("name", kdlightning.__all__)
def test_every_lazy_name_resolves(name):
    assert getattr(kdlightning, name) is not None


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "lightning", "timm", "transformers")
    code = f"import sys, kdlightning; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_folder_under_its_own_name_is_refused():
    spec = importlib.util.spec_from_file_location("callbacks", ROOT / "callbacks" / "__init__.py")
    with pytest.raises(ImportError, match=r"import kdlightning\.callbacks"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_an_uninstalled_checkout_finds_its_mapped_folders(tmp_path):
    for folder in ("kdlightning", *MAPPED):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "import kdlightning.configs, importlib.util as u;"
        "print(kdlightning.__file__, kdlightning.configs.__file__, u.find_spec('kdlightning.callbacks').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())


def test_who_may_import_whom(tmp_path):
    # The linter reads folders, so the mapped ones are laid where an installed package has them.
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kdlightning", tmp_path / "kdlightning", ignore=ignore)
    shutil.copytree(ROOT / "callbacks", tmp_path / "kdlightning" / "callbacks", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_names_what_is_exported():
    tree = ast.parse((ROOT / "kdlightning" / "__init__.pyi").read_text())
    named = {
        (node.module, alias.asname) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert named == {(module, name) for module, names in kdlightning._EXPORTS.items() for name in names}
