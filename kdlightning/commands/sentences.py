"""Turns what jsonargparse and Lightning say about wrong input into one sentence with the nearest right name.

jsonargparse reports a wrong option deep inside a configuration as a tree of all alternatives that it tried. The
deepest leaf is where the user went wrong; the keys above it are the option's full name.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdlightning.errors import ConfigurationError, nearest

_BOILERPLATE = re.compile(
    r"Does not validate against any|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but|Not a valid"
    r"|Subclass types expect|a class path \(str\)|a dict with|a dict without|tip: "
)
_KEY = re.compile(r'Parser key "([^"]+)"(?:[^:]*)?:')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_TYPES = re.compile(r"Subtypes: \[(.*)\]$")
_GIVEN = re.compile(r"Given value: (?:NestedArg\(key='[^']*', val=)?(.*?)\)?$")
_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)")
_CALLABLE = re.compile(r"Type typing\.Callable.*?callable class: (.*?)\. Got value: (.*)$")


@dataclass
class Leaf:
    """One alternative that failed: the option's keys, the class that refused it, the types allowed, and why."""

    keys: tuple[str, ...]
    owner: str | None
    types: str
    text: str
    depth: int
    given: str = ""

    @property
    def option(self) -> str:
        """Full name of the option."""
        return ".".join(self.keys)


def explain(error: BaseException) -> ConfigurationError | None:
    """One sentence for a mistake that Lightning or jsonargparse found; None if it is no mistake of the user's."""
    for link in _chain(error):
        if isinstance(link, ConfigurationError):
            return link
    text = str(error)
    leaf = deepest(text)
    sentence = _sentence(leaf) if leaf is not None else None
    inner = re.search(r'expects a function or a callable class: Parser key "([^"]+)":?$', sentence or "")
    if inner and leaf is not None:
        # A value inside an optimizer or scheduler: what is wrong with it stands in no line of its own.
        given = _GIVEN.search(text)
        sentence = f"{leaf.option}.{inner[1]}: {given[1] if given else 'the value'} does not fit: give another one"
    sentence = sentence or _refused(error)
    return ConfigurationError(sentence) if sentence else None


def _refused(error: BaseException) -> str | None:
    """What a constructor said of its values, where jsonargparse says no more than that nothing fits."""
    if "Does not validate against any" not in str(error):
        return None
    said = [link for link in _chain(error) if "Does not validate against any" not in str(link)]
    options = [match[1] for link in _chain(error) if (match := _KEY.search(str(link)))]
    return f"{f'{options[-1]}: ' if options else ''}{str(said[-1]).splitlines()[0]}" if said and str(said[-1]) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def deepest(text: str) -> Leaf | None:
    """The leaf below the most keys and classes; the first of equals."""
    leaves = list(_leaves(text))
    return max(leaves, key=lambda leaf: leaf.depth) if leaves else None


def _leaves(text: str) -> Iterator[Leaf]:
    stack: list[tuple[int, str, str]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        bare = line.lstrip(" -")
        if not bare:
            continue
        indent = len(line) - len(bare)
        key, owner, types, kind = _KEY.match(bare), _CLASS.match(bare), _TYPES.match(bare), _SUBCLASS.match(bare)
        # "Subtypes" describes its own level, so that it is dropped only by lines further left.
        stack = [entry for entry in stack if entry[0] < indent or (entry[1] == "types" and entry[0] == indent)]
        if key:
            stack.append((indent, "key", key[1]))
        elif owner:
            stack.append((indent, "class", owner[1]))
        elif types:
            stack = [entry for entry in stack if not (entry[1] == "types" and entry[0] == indent)]
            stack.append((indent, "types", types[1]))
        elif kind:
            yield _leaf(stack, f"expected {_article(kind[1])} (a class_path with init_args)")
        elif not _BOILERPLATE.match(bare):
            leaf = _leaf(stack, bare)
            leaf.given = next((m[1] for m in map(_GIVEN.search, lines[number:]) if m), "")
            yield leaf


def _leaf(stack: list[tuple[int, str, str]], text: str) -> Leaf:
    keys = tuple(value for _, kind, value in stack if kind == "key")
    owners = [value for _, kind, value in stack if kind == "class"]
    # Types that an outer option accepts say nothing about an option inside it.
    last_key = max((at for at, (_, kind, _) in enumerate(stack) if kind == "key"), default=-1)
    types = [value for _, kind, value in stack[last_key + 1 :] if kind == "types"]
    if not types and owners and keys:
        types = [_declared(owners[-1], keys[-1])]
    depth = sum(kind != "types" for _, kind, _ in stack)
    return Leaf(keys, owners[-1] if owners else None, types[-1] if types else "", text, depth)


def _sentence(leaf: Leaf) -> str | None:
    inner = _CALLABLE.match(leaf.text)
    if inner:
        named = re.search(r"class_path='([^']+)'", inner[2])
        leaf = Leaf(leaf.keys, named[1] if named else None, leaf.types, inner[1], leaf.depth)
    prefix = f"{leaf.option}: " if leaf.keys else ""
    for read in (_unknown_option, _unknown_class, _wrong_type, _missing, _foreign):
        sentence = read(leaf, prefix)
        if sentence:
            return sentence
    return f"{prefix}{leaf.text}" if leaf.keys or leaf.owner else None


def _unknown_option(leaf: Leaf, prefix: str) -> str | None:
    found = re.match(r"Option '([^']+)' is not accepted", leaf.text)
    if not found:
        return None
    name = found[1].removeprefix("init_args.")
    owner = leaf.owner or ""
    known = set(subclasses(leaf.types)) - {_short(owner)}
    if known and owner in re.findall(r"<class '([\w.]+)'>", leaf.types):
        return f"{prefix}name a class first, --{leaf.option}=CLASS{nearest('', known)}"
    return f"{prefix}{_short(owner)} has no option {name!r}{nearest(name, parameters(owner))}"


def _unknown_class(leaf: Leaf, prefix: str) -> str | None:
    found = re.match(r"Expected a dot import path string: (.+)", leaf.text)
    if found:
        name = found[1].strip()
        return f"{prefix}no class {name!r} is known here{nearest(name, subclasses(leaf.types))}"
    found = re.match(r"module '([^']+)' has no attribute '([^']+)'", leaf.text)
    if found:
        return f"{prefix}{found[1]} has no {found[2]!r}{nearest(found[2], _names(found[1]))}"
    found = re.match(r"(?:Problem.*)?No module named '([^']+)'", leaf.text)
    if found:
        return f"{prefix}cannot import {found[1]!r}; is its folder on PYTHONPATH?"
    found = re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", leaf.text)
    if found:
        return f"{prefix}{found[1]} is not {_article(found[2])}{_hint(leaf.types)}"
    return None


def _wrong_type(leaf: Leaf, prefix: str) -> str | None:
    found = re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", leaf.text)
    if not found:
        return None
    value = found[2] if found[2] is not None else leaf.given
    got = f", not {value}" if value and len(value) < 80 else ""
    alternatives = re.findall(r"<class '([\w.]+)'>", leaf.types)
    kinds = [name.rsplit(".", 1)[-1] for name in alternatives if name != "NoneType"]
    if not kinds or found[2] is not None:
        kinds = re.findall(r"<class '([\w.]+)'>", found[1]) or [found[1]]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind != "int" or "float" not in kinds]
    return f"{prefix}expected {' or '.join(_article(kind) for kind in kinds)}{got}"


def _missing(leaf: Leaf, prefix: str) -> str | None:
    found = re.match(r"the following arguments are required: (.+)", leaf.text)
    if not found:
        return None
    if leaf.owner:
        return f"{prefix}{_short(leaf.owner)} needs {found[1]}: --{leaf.option}.{found[1].split(',')[0]}=…"
    names = [name.strip().split(".", 1)[-1] for name in found[1].split(",")]
    options = " and ".join(f"--{name}" for name in names)
    return f"{' and '.join(names)} missing: give {options}, or a configuration with -c"


def _foreign(leaf: Leaf, prefix: str) -> str | None:
    found = re.match(r"(?:Subcommand '\w+' does not accept option '|unrecognized arguments: -*)([^'=\s]+)", leaf.text)
    if not found:
        return None
    group, _, name = found[1].rpartition(".")
    known = parameters("lightning.pytorch.Trainer") if group == "trainer" else []
    return f"there is no option {found[1]!r}{nearest(name, known)}"


def parameters(path: str) -> list[str]:
    """Options of the class or function at an import path, those of its bases included where it passes them on."""
    thing = _load(path)
    names: list[str] = []
    for each in inspect.getmro(thing) if inspect.isclass(thing) else [thing]:
        function = each.__dict__.get("__init__") if inspect.isclass(each) else each
        if function is None or function is object.__init__:
            continue
        signature = inspect.signature(function).parameters.values()
        names += [p.name for p in signature if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in signature):
            break
    return names


def subclasses(types: str) -> list[str]:
    """Names of the loaded classes that an option of these types accepts."""
    found: set[str] = set()
    for path in re.findall(r"[A-Za-z_][\w]*(?:\.[\w]+)+", types):
        base = _load(path)
        if inspect.isclass(base) and base is not type(None) and path.split(".")[0] not in ("typing", "collections"):
            found |= {cls.__name__ for cls in _descend(base)}
    return sorted(name for name in found if not name.startswith("_"))


def _descend(base: Any) -> Iterator[type]:
    if not inspect.isabstract(base):
        yield base
    for cls in base.__subclasses__():
        yield from _descend(cls)


def _hint(types: str) -> str:
    known = subclasses(types)
    ours = [name for name in known if name not in ("LightningModule", "LightningDataModule")]
    return f"; known: {', '.join(ours[:8])}" if 0 < len(ours) <= 8 else ""


def _declared(owner: str, option: str) -> str:
    """The type that a class or function declares for an option, as jsonargparse would write it."""
    thing = _load(owner)
    function = thing.__init__ if inspect.isclass(thing) else thing
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        return ""
    return str(hints.get(option, ""))


def _names(module: str) -> list[str]:
    loaded = _load(module)
    return [name for name in dir(loaded) if not name.startswith("_")] if loaded is not None else []


def _load(path: str) -> Any:
    """The object at an import path, or None."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name) if module else importlib.import_module(path)
    except (ImportError, AttributeError, ValueError):
        try:
            return importlib.import_module(path)
        except (ImportError, ValueError):
            return None


def _short(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _article(kind: str) -> str:
    names = {"float": "number", "int": "whole number", "str": "text", "bool": "true or false", "dict": "mapping"}
    word = names.get(kind, kind)
    if kind == "bool":
        return word
    return word if kind == "str" else f"{'an' if word[:1] in 'AEIOUaeio' else 'a'} {word}"
