"""Recipes: named stages, each an ordinary command in its own process, with products that later stages refer to.

A finished stage is skipped while its settings and the products that it reads are unchanged; a stage that was killed
goes on from its last checkpoint. The engine shares nothing with the commands but argument strings and the files that
they leave.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError, nearest

COMMANDS = ("fit", "validate", "test", "predict", "export")
ROLES = ("teacher", "baseline", "student")
_PRODUCTS = ("best", "last", "run", "export")
_STAGE_KEYS = ("command", "config", "arguments", "then", "repeat", "role", "label")
_THEN = ("test", "export")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe; a repeated one is expanded into several.

    Attributes:
        name: `teacher`, or `born.2` for a repetition.
        base: the name as the recipe has it.
        command: fit, validate, test, predict or export.
        config: configurations by name or path, or written out, in their order.
        arguments: further arguments of the command.
        then: what follows a fit in the same process.
        number: which repetition, from 1.
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
    if listed and shared:
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
    if repeat == 1:
        yield stage
        return
    for number in range(1, repeat + 1):
        yield replace(stage, name=f"{name}.{number}", number=number, label=f"{stage.label} {number}")


def _strings(value: Any, where: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise ConfigurationError(f"{where} must be a list")
    return tuple(str(item) for item in listed)


def references(value: Any) -> Iterator[str]:
    """What stands between `${` and `}` anywhere in a value."""
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from references(item)


def _check_references(stages: tuple[Stage, ...], source: str) -> None:
    for at, stage in enumerate(stages):
        for text in references([stage.config, stage.arguments]):
            where = f"{source}: stage {stage.base!r}: ${{{text}}}"
            if text == "seed":
                continue
            target, product = _target(text, stages[:at], where)
            if target.command != "fit":
                raise ConfigurationError(
                    f"{where}: only fit stages have products, and {target.name} is a {target.command}"
                )
            if product == "export" and "export" not in target.then:
                raise ConfigurationError(f"{where}: {target.name} exports nothing; give it then: [export]")


def _target(text: str, earlier: tuple[Stage, ...], where: str) -> tuple[Stage, str]:
    """The earlier stage that a reference means, and which of its products."""
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


@dataclass
class Plan:
    """What is to be done with a stage now.

    Attributes:
        stage: the stage.
        action: "skip", "resume" or "run".
        reason: why, in a few words.
        key: names its settings and everything that it reads.
        run: run folder of a fit; None otherwise.
        arguments: of the command.
        log: where its output goes.
    """

    stage: Stage
    action: str
    reason: str
    key: str
    run: Path | None
    arguments: list[str]
    log: Path


@dataclass
class Engine:
    """Runs a recipe.

    Attributes:
        recipe: what to run.
        runs: root of all run folders.
        seed: seed of the first repetition; each further one counts up.
        find_config: turns the name of a configuration into its path.
        start: runs a command: arguments, log; returns its exit code.
        fresh: whether every stage runs again.
    """

    recipe: Recipe
    runs: Path
    seed: int
    find_config: Callable[[str], Path]
    start: Callable[[Plan, list[str]], int]
    fresh: bool = False
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state_file.is_file():
            try:
                self.state = json.loads(self.state_file.read_text(encoding="utf-8"))["stages"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigurationError(f"{self.state_file} is damaged: delete it, or run with --fresh") from error

    @property
    def folder(self) -> Path:
        """The recipe's own folder: state, logs, written-out configurations, the chart."""
        return self.runs / self.recipe.name / "recipe" / f"seed{self.seed}"

    @property
    def state_file(self) -> Path:
        """What is known of the stages."""
        return self.folder / "recipe.json"

    def run(self, show: Callable[[Plan, int, int], None] = lambda plan, number, count: None) -> int:
        """Runs what is not finished.

        Args:
            show: told of each plan before it is carried out, with its number and the count of stages.

        Returns:
            0, or the exit code of the stage that failed.
        """
        if self.fresh:
            self.state = {}
        for number, stage in enumerate(self.recipe.stages, start=1):
            plan = self.plan(stage)
            show(plan, number, len(self.recipe.stages))
            if plan.action == "skip":
                continue
            code = self._carry_out(plan)
            if code != 0:
                return code
        return 0

    def plan(self, stage: Stage) -> Plan:
        """What is to be done with a stage, given what is finished."""
        key = self._key(stage)
        entry = self.state.get(stage.name, {})
        log = self.folder / "logs" / f"{stage.name}.log"
        if entry.get("key") == key and entry.get("status") == "finished":
            missing = self._missing(entry)
            if missing is None:
                run = Path(entry["run"]) if entry.get("run") else None
                return Plan(stage, "skip", "finished", key, run, [], log)
            reason = f"{missing} is missing or was changed"
        elif entry.get("key") == key:
            run = Path(entry["run"]) if entry.get("run") else None
            resumes = run is not None and (run / "checkpoints" / "last.ckpt").is_file()
            action = "resume" if resumes else "run"
            return Plan(stage, action, "it did not finish", key, run, self._arguments(stage, run, resumes), log)
        else:
            reason = "its settings or what it reads changed" if entry else "not run yet"
        run = self._new_run(stage) if stage.command == "fit" else None
        return Plan(stage, "run", reason, key, run, self._arguments(stage, run, False), log)

    def _carry_out(self, plan: Plan) -> int:
        self._write_configs(plan.stage)
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        entry: dict[str, Any] = {"key": plan.key, "run": str(plan.run) if plan.run else None}
        self._save(plan.stage, {**entry, "status": "running"})
        begun = time.monotonic()
        code = self.start(plan, [sys.executable, "-m", "kdlightning.cli", plan.stage.command, *plan.arguments])
        if code != 0:
            self._save(plan.stage, {**entry, "status": "failed", "code": code})
            return code
        products = {str(path): self._sign(path) for path in self._products(plan)}
        seconds = round(time.monotonic() - begun, 2)
        self._save(plan.stage, {**entry, "status": "finished", "seconds": seconds, "products": products})
        return 0

    def _save(self, stage: Stage, entry: dict[str, Any]) -> None:
        self.state[stage.name] = entry
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.state_file.with_name(f".recipe.json.{os.getpid()}")
        content = {"recipe": self.recipe.name, "seed": self.seed, "stages": self.state}
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.state_file)

    # -- products --------------------------------------------------------------------------------------------------

    def _products(self, plan: Plan) -> list[Path]:
        if plan.run is None:
            return []
        found = [plan.run / "checkpoints" / f"{which}.ckpt" for which in ("last", "best")]
        if "export" in plan.stage.then:
            found += sorted(path for path in (plan.run / "export").iterdir() if path.is_file())
        return [path for path in found if path.is_file()]

    @staticmethod
    def _sign(path: Path) -> dict[str, Any]:
        facts = path.stat()
        return {"size": facts.st_size, "time": facts.st_mtime_ns, "sha256": file_hash(path)}

    @staticmethod
    def _missing(entry: Mapping[str, Any]) -> str | None:
        """The first product that is gone or was changed. Size and time are looked at first: hashing takes time."""
        run = entry.get("run")
        if run and not (Path(run) / "result.json").is_file():
            return f"{run}/result.json"
        for name, signed in entry.get("products", {}).items():
            path = Path(name)
            if not path.is_file():
                return name
            facts = path.stat()
            same = facts.st_size == signed["size"] and facts.st_mtime_ns == signed["time"]
            if not same and file_hash(path) != signed["sha256"]:
                return name
        return None

    def _new_run(self, stage: Stage) -> Path:
        folder = self.runs / self.recipe.name / stage.name / f"seed{self._seed_of(stage)}"
        taken = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
        return folder / f"version_{max(taken, default=-1) + 1}"

    def _seed_of(self, stage: Stage) -> int:
        return self.seed + stage.number - 1

    # -- arguments -------------------------------------------------------------------------------------------------

    def _key(self, stage: Stage) -> str:
        """Names everything that a stage's outcome depends on: settings, configurations, products that it reads."""
        configs: list[Any] = []
        for part in stage.config:
            configs.append(file_hash(self.find_config(part)) if isinstance(part, str) else part)
        content = {
            "command": stage.command,
            "config": configs,
            "arguments": list(stage.arguments),
            "then": list(stage.then),
            "seed": self._seed_of(stage),
            "reads": {text: self._read_hash(stage, text) for text in references([stage.config, stage.arguments])},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _read_hash(self, stage: Stage, text: str) -> str:
        if text == "seed":
            return str(self._seed_of(stage))
        target, product = self._resolve(stage, text)
        entry = self.state.get(target.name, {})
        signed = entry.get("products", {})
        if entry.get("status") != "finished":
            return "not made yet"
        # A run is known by its last weights: its logs hold times, which differ between equal runs.
        name = f"{'last' if product == 'run' else product}.ckpt"
        wanted = [s["sha256"] for p, s in signed.items() if Path(p).name == name or Path(p).parent.name == product]
        return "+".join(wanted)

    def _resolve(self, stage: Stage, text: str) -> tuple[Stage, str]:
        at = self.recipe.stages.index(stage)
        return _target(text, self.recipe.stages[:at], stage.name)

    def _value(self, stage: Stage, text: str) -> str:
        if text == "seed":
            return str(self._seed_of(stage))
        target, product = self._resolve(stage, text)
        run = self.state.get(target.name, {}).get("run")
        if run is None:
            return f"${{{text}}}"
        if product in ("best", "last"):
            return str(Path(run) / "checkpoints" / f"{product}.ckpt")
        return run if product == "run" else str(Path(run) / "export")

    def fill(self, stage: Stage, value: Any) -> Any:
        """A value with its references replaced by paths."""
        if isinstance(value, str):
            return _REFERENCE.sub(lambda match: self._value(stage, match[1]), value)
        if isinstance(value, Mapping):
            return {key: self.fill(stage, item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.fill(stage, item) for item in value]
        return value

    def _config_file(self, stage: Stage, number: int) -> Path:
        return self.folder / "configs" / f"{stage.name}-{number}.yaml"

    def _write_configs(self, stage: Stage) -> None:
        import yaml

        for number, part in enumerate(stage.config):
            if isinstance(part, Mapping):
                path = self._config_file(stage, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                text = yaml.safe_dump(self.fill(stage, part), sort_keys=False, allow_unicode=True)
                path.write_text(text, encoding="utf-8")

    def _arguments(self, stage: Stage, run: Path | None, resumes: bool) -> list[str]:
        made: list[str] = []
        for number, part in enumerate(stage.config):
            path = self.find_config(part) if isinstance(part, str) else self._config_file(stage, number)
            made += ["--config", str(path)]
        made += self.fill(stage, stage.arguments)
        if stage.command != "export":
            made += ["--name", f"{self.recipe.name}/{stage.name}", f"--seed_everything={self._seed_of(stage)}"]
            made += [f"--trainer.default_root_dir={self.runs}"]
        if run is not None:
            made += ["--run", str(run)]
            made += ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")] if resumes else []
            made += ["--then", ",".join(stage.then)] if stage.then else []
        return made


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
