"""What a recipe says: stages in their order, and which earlier products they read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdlightning.errors import ConfigurationError, nearest

COMMANDS = ("generate", "fit", "validate", "test", "predict", "export")
ROLES = ("teacher", "baseline", "student")
_PRODUCTS = ("best", "last", "run", "export")
_STAGE_KEYS = ("command", "config", "arguments", "then", "repeat", "first", "role", "label")
_THEN = ("test", "export")
REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe; a repeated one is expanded into several.

    Attributes:
        name: `teacher`, or `born.2` for a repetition.
        base: the name as the recipe has it.
        command: generate, fit, validate, test, predict or export.
        config: configurations by name or path, or written out, in their order.
        arguments: further arguments of the command.
        then: what follows a fit in the same process.
        number: which repetition, counted from `first`, 1 by default; seeds count with it.
        role: teacher, baseline or student: its line in the table; None for no line.
        label: what that line is called.
    """

    name: str
    base: str
    command: str
    config: tuple[str | Mapping[str, Any], ...] = ()
    arguments: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    number: int = 1
    role: str | None = None
    label: str = ""

    @property
    def measures(self) -> bool:
        """Whether it is a test that leaves scores of a student as it is built."""
        return self.command == "test" and self.role is not None


@dataclass(frozen=True)
class Recipe:
    """Stages in their order.

    Attributes:
        name: what the runs are called.
        stages: with repetitions expanded.
    """

    name: str
    stages: tuple[Stage, ...]


def parse_recipe(name: str, content: Mapping[str, Any], source: str, *, baseline: bool = True) -> Recipe:
    """Reads a recipe.

    Args:
        name: what its runs are called.
        content: the file's content.
        source: the file's name, for messages.
        baseline: whether stages of role `baseline` are kept.

    Raises:
        ConfigurationError: unknown keys, commands, roles or references.
    """
    if "stages" not in content:
        raise ConfigurationError(f"{source} has no stages: it is a configuration, kdlightning fit -c {source}")
    for key in content:
        if key not in ("stages", "shared"):
            raise ConfigurationError(f"{source}: a recipe has no {key!r}{nearest(str(key), ('stages', 'shared'))}")
    stages, shared = content["stages"], content.get("shared") or {}
    if not isinstance(stages, Mapping) or not stages:
        raise ConfigurationError(f"{source}: stages: must map names to stages")
    if not isinstance(shared, Mapping):
        raise ConfigurationError(f"{source}: shared: must hold options of a configuration")
    expanded = [stage for key, spec in stages.items() for stage in _expand(str(key), spec, shared, source)]
    kept = tuple(stage for stage in expanded if baseline or stage.role != "baseline")
    if not kept:
        raise ConfigurationError(f"{source}: no stage is left without the baseline")
    _check_references(kept, source)
    return Recipe(name, kept)


def _expand(name: str, spec: Any, shared: Mapping[str, Any], source: str) -> Iterator[Stage]:
    where = f"{source}: stage {name!r}"
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name == "recipe":
        raise ConfigurationError(f"{where}: use letters, digits, - and _ (and not the name recipe)")
    if not isinstance(spec, Mapping):
        raise ConfigurationError(f"{where} must hold command, config, …")
    for key in spec:
        if key not in _STAGE_KEYS:
            raise ConfigurationError(f"{where} has no {key!r}{nearest(str(key), _STAGE_KEYS)}")
    command, repeat = spec.get("command", "fit"), spec.get("repeat", 1)
    if command not in COMMANDS:
        raise ConfigurationError(f"{where}: command {command!r}{nearest(str(command), COMMANDS)}")
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        raise ConfigurationError(f"{where}: repeat must be a whole number of at least 1, not {repeat!r}")
    first = spec.get("first", 1)
    if not isinstance(first, int) or isinstance(first, bool) or first < 1:
        raise ConfigurationError(f"{where}: first must be a whole number of at least 1, not {first!r}")
    then = _strings(spec.get("then", ()), f"{where}: then")
    for step in then:
        if step not in _THEN or command != "fit":
            raise ConfigurationError(f"{where}: after {command}, then cannot be {step!r}{nearest(step, _THEN)}")
    role = spec.get("role")
    if role is not None and role not in ROLES:
        raise ConfigurationError(f"{where}: role {role!r}{nearest(str(role), ROLES)}")
    config = spec.get("config", ())
    listed = list(config) if isinstance(config, (list, tuple)) else [config]
    for part in listed:
        if not isinstance(part, (str, Mapping)):
            raise ConfigurationError(f"{where}: config must be a name, options, or a list of these, not {part!r}")
    if shared and (listed or command == "generate"):
        # What the stages share may be all that a teacher is asked with.
        listed.insert(0, shared)
    stage = Stage(
        name,
        name,
        command,
        tuple(listed),
        _strings(spec.get("arguments", ()), f"{where}: arguments"),
        then,
        role=role,
        label=str(spec.get("label", name)),
    )
    if repeat == 1 and "first" not in spec:
        yield stage
        return
    for number in range(first, first + repeat):
        yield replace(stage, name=f"{name}.{number}", number=number, label=f"{stage.label} {number}")


def _strings(value: Any, where: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise ConfigurationError(f"{where} must be a list")
    return tuple(str(item) for item in listed)


def references(value: Any) -> Iterator[str]:
    """What stands between `${` and `}` anywhere in a value."""
    for text in _texts(value):
        yield from REFERENCE.findall(text)


def _texts(value: Any) -> Iterator[str]:
    """Every text anywhere in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _check_references(stages: tuple[Stage, ...], source: str) -> None:
    for at, stage in enumerate(stages):
        for value in _texts([stage.config, stage.arguments]):
            if "${" in REFERENCE.sub("", value):
                raise ConfigurationError(f"{source}: stage {stage.base!r}: {value!r} opens a ${{ and does not close it")
        for text in references([stage.config, stage.arguments]):
            where = f"{source}: stage {stage.base!r}: ${{{text}}}"
            if text == "seed":
                continue
            target, product = target_of(text, stages[:at], where)
            if target.command != "fit":
                raise ConfigurationError(
                    f"{where}: only fit stages have products, and {target.name} is a {target.command}"
                )
            if product == "export" and "export" not in target.then:
                raise ConfigurationError(f"{where}: {target.name} exports nothing; give it then: [export]")


def target_of(text: str, earlier: tuple[Stage, ...], where: str) -> tuple[Stage, str]:
    """The earlier stage that a reference means, and which of its products.

    Raises:
        ConfigurationError: no earlier stage, or no product, has that name.
    """
    parts = text.split(".")
    product = parts[-1]
    if product not in _PRODUCTS:
        raise ConfigurationError(f"{where}: a stage has no {product!r}{nearest(product, _PRODUCTS)}")
    if parts[0] == "previous" and len(parts) == 2:
        if not earlier:
            raise ConfigurationError(f"{where}: there is no stage before it")
        return earlier[-1], product
    if parts[0] != "stages" or len(parts) not in (3, 4):
        raise ConfigurationError(f"{where}: write ${{stages.NAME.best}}, ${{previous.best}} or ${{seed}}")
    name = ".".join(parts[1:-1])
    # The name of a repeated stage means its last repetition.
    found = [stage for stage in earlier if name in (stage.name, stage.base)]
    if not found:
        known = {known for stage in earlier for known in (stage.name, stage.base)}
        raise ConfigurationError(f"{where}: no earlier stage is named {name!r}{nearest(name, known)}")
    return found[-1], product
