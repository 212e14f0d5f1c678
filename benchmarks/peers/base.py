"""What a comparison with public code consists of."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Peer:
    """One public implementation.

    Attributes:
        repository: `owner/name` on GitHub.
        commit: 40 hex digits.
        path: the file in it that is loaded by itself.
        make: from the loaded file, a function of the same inputs as `Case.ours` that returns the same scalar. Bring
            the two to one convention here (an outer weight, a sum instead of a mean) and say so in `note`.
        agrees: False if it cannot be brought to our value; `note` then says what differs and who follows the paper.
        note: for the table.
        stubs: modules that the file imports and does not need for this function; empty ones stand in.
    """

    repository: str
    commit: str
    path: str
    make: Callable[[ModuleType], Callable[..., Tensor]]
    agrees: bool = True
    note: str = ""
    stubs: tuple[str, ...] = ()

    def load(self, folder: Path) -> Callable[..., Tensor]:
        """The function, from a checkout at `folder/owner+name`.

        Raises:
            FileNotFoundError: there is none.
        """
        root = folder / self.repository.replace("/", "+")
        file = root / self.path
        if not file.is_file():
            raise FileNotFoundError(f"no {file}: clone github.com/{self.repository} there and check out {self.commit}")
        names = [re.sub(r"\W", "_", part) for part in file.relative_to(folder).with_suffix("").parts]
        name = ".".join(["_peer", *names])
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with _beside(file, root, self.stubs):
            _bare_packages(names[:-1], root)
            spec.loader.exec_module(module)
        return self.make(module)


@dataclass(frozen=True)
class Case:
    """One function of ours and who else has it.

    Attributes:
        method: our name of the method, as in `kdlightning list`.
        function: our function or module, as users call it.
        paper: authors and year.
        form: which form of the formula ours is, in a few words.
        shapes: three shapes of the student's tensor, small to large; the realistic one last.
        inputs: from a shape and a generator, all tensors; those that require grad are what gradients are compared of.
        ours: our function of these inputs.
        peers: who is compared. May be empty if `none` says why.
        none: why nobody can be compared.
    """

    method: str
    function: str
    paper: str
    form: str
    shapes: tuple[Shape, Shape, Shape]
    inputs: Callable[[Shape, Generator], tuple[Any, ...]]
    ours: Callable[..., Tensor]
    peers: tuple[Peer, ...] = field(default=())
    none: str = ""


def pair(shape: Shape, generator: Generator, wider: int = 1) -> tuple[Tensor, Tensor]:
    """Student (requires grad) and teacher, standard normal; the teacher has `wider` times as many channels."""
    student = torch.randn(shape, generator=generator).requires_grad_()
    teacher = torch.randn((shape[0], shape[1] * wider, *shape[2:]), generator=generator)
    return student, teacher


@contextmanager
def _beside(file: Path, root: Path, stubs: tuple[str, ...]) -> Iterator[None]:
    """Lets a file import its neighbours, and empty modules in place of what it does not need."""
    before = set(sys.modules)
    places = [str(file.parent), str(root)]
    sys.path[:0] = places
    package = sys.modules.setdefault
    for name in stubs:
        package(name, _Anything(name))
    try:
        yield
    finally:
        for place in places:
            sys.path.remove(place)
        for name in set(sys.modules) - before:
            if (
                name in stubs
                or getattr(sys.modules[name], "__file__", None) is None
                or _inside(sys.modules[name], root)
            ):
                del sys.modules[name]


def _bare_packages(names: list[str], root: Path) -> None:
    """The folders above a file as packages, so that it may import relatively; their `__init__.py` are not run."""
    folder, package = root.parent, "_peer"
    for name in ["", *names]:
        if name:
            package = f"{package}.{name}"
            folder = next(child for child in folder.iterdir() if re.sub(r"\W", "_", child.name) == name)
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(folder)]


def _inside(module: Any, root: Path) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(str(root))


class _Anything(ModuleType):
    """Every attribute exists; used as a base class or decorator it does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


class _Nameless(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_Nameless):
    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __init_subclass__(cls, **options: Any) -> None: ...

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        return self


_nothing = _Nothing
