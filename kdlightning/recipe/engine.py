"""Carries a recipe out: what is finished is skipped, what was killed goes on.

The engine shares nothing with the commands but argument strings and the files that they leave.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError
from kdlightning.recipe.stages import REFERENCE, Recipe, Stage, references, target_of


@dataclass
class Plan:
    """What is to be done with a stage now.

    Attributes:
        stage: the stage.
        action: "skip", "resume" or "run".
        reason: why, in a few words.
        key: names its settings and everything that it reads.
        run: run folder of a fit, or of a test that has a line in the table; None otherwise.
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
        if self.state_file.is_file() and not self.fresh:
            try:
                stages = json.loads(self.state_file.read_text(encoding="utf-8"))["stages"]
                self.state = {name: dict(entry) for name, entry in stages.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
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
            # A store keeps what a killed generation was answered.
            action = "resume" if resumes or stage.command == "generate" else "run"
            return Plan(stage, action, "it did not finish", key, run, self._arguments(stage, run, resumes), log)
        else:
            reason = "its settings or what it reads changed" if entry else "not run yet"
        run = self._new_run(stage) if stage.command == "fit" or stage.measures else None
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
        if plan.stage.command == "generate":
            return self._generated(plan.stage)
        if plan.run is None:
            return []
        found = [plan.run / "checkpoints" / f"{which}.ckpt" for which in ("last", "best")]
        if "export" in plan.stage.then:
            found += sorted(path for path in (plan.run / "export").iterdir() if path.is_file())
        return [path for path in found if path.is_file()]

    def _result_file(self, stage: Stage) -> Path:
        return self.folder / "generated" / f"{stage.name}.json"

    def _generated(self, stage: Stage) -> list[Path]:
        """What `generate` says that it has written: the report, and what else the method leaves beside it."""
        result = json.loads(self._result_file(stage).read_text(encoding="utf-8"))
        return [Path(name) for name in (result["report"], *result["products"])]

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
        texts = self._texts_before(stage)
        if texts:
            content["texts"] = texts
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _texts_before(self, stage: Stage) -> dict[str, list[str]]:
        """Reports of the generate stages before one: which of their stores it reads stands in no reference."""
        earlier = self.recipe.stages[: self.recipe.stages.index(stage)] if stage.command != "generate" else ()
        entries = {other.name: self.state.get(other.name, {}) for other in earlier if other.command == "generate"}
        return {name: [s["sha256"] for s in entry.get("products", {}).values()] for name, entry in entries.items()}

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
        return target_of(text, self.recipe.stages[:at], stage.name)

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
            return REFERENCE.sub(lambda match: self._value(stage, match[1]), value)
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
        if stage.command == "generate":
            made += [f"--seed_everything={self._seed_of(stage)}", "--result", str(self._result_file(stage))]
        elif stage.command != "export":
            made += ["--name", f"{self.recipe.name}/{stage.name}", f"--seed_everything={self._seed_of(stage)}"]
            made += [f"--trainer.default_root_dir={self.runs}"]
        if run is not None:
            made += ["--run", str(run)]
            made += ["--ckpt_path", "null"] if stage.measures else []
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
