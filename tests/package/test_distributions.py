"""Wheel, sdist and editable installs all hold the mapped folders and the configurations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kdlightning", "callbacks", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
CODE = """
import importlib.resources as resources, kdlightning, kdlightning.callbacks, kdlightning.configs
from kdlightning.commands.shipped import find_config
print(kdlightning.__file__)
print(kdlightning.callbacks.FeatureKD.__module__, find_config("offline/response/kd").is_file())
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def distributions(copy, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in out.iterdir()}


def imported(folder: Path, cwd: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_wheel_holds_code_callbacks_configs_and_licence(distributions, tmp_path):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    for wanted in ("py.typed", "__init__.pyi", "callbacks/feature_kd.py", "configs/recipes/quickstart.yaml"):
        assert f"kdlightning/{wanted}" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if not name.startswith("kdlightning-")} == {"kdlightning"}
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(name).relative_to("kdlightning/configs") for name in names if name.endswith(".yaml")} == shipped
    place, found = imported(tmp_path / "site", tmp_path)
    assert place.startswith(str(tmp_path / "site"))
    assert found.endswith("True")


def test_sdist_builds_the_same_wheel(distributions, tmp_path):
    with tarfile.open(distributions[".gz"]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(folder)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(distributions[".whl"]) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_editable_install_imports_the_mapped_folders(copy, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    target = tmp_path / "site"
    done = subprocess.run(
        [*command, "--target", str(target), "--editable", str(copy)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    # Without -S this environment's own editable install would be found first. A .pth file is read in site folders only.
    packages = sysconfig.get_paths()["purelib"]
    code = f"import site, sys; site.addsitedir({str(target)!r}); sys.path.append({packages!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, found = done.stdout.splitlines()
    assert place.startswith(str(copy))
    assert found.endswith("True")
