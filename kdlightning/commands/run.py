"""`kdlightning run`: a recipe from its first stage to the table that compares."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from kdlightning.commands import generate
from kdlightning.commands.groups import headline
from kdlightning.commands.options import Parser
from kdlightning.commands.precheck import check_content, load, read_request
from kdlightning.commands.runs import read_result
from kdlightning.commands.shipped import find_config
from kdlightning.commands.stage import Screen, locked, run_stage, tail
from kdlightning.errors import ConfigurationError
from kdlightning.recipe import Engine, Plan, Recipe, parse_recipe

Row = tuple[str, Path, dict[str, Any]]
"""A line of the table: its label, its run and that run's result."""


def main(arguments: list[str]) -> int:
    """Runs a recipe."""
    options = _parse(arguments)
    path = find_config(options.recipe, below="recipes")
    recipe = parse_recipe(path.stem, load(path), str(path), baseline=not options.no_baseline)
    _check_stages(recipe, str(path))
    screen = Screen()
    engine = Engine(recipe, Path(options.output), options.seed, find_config, start=_not_started, fresh=options.fresh)
    if options.dry_run:
        _print_plans(engine)
        return 0
    last: list[Plan] = []

    def show(plan: Plan, number: int, count: int) -> None:
        last[:] = [plan]
        screen.show(plan, number, count)

    with locked(engine.folder) as lock:
        engine.start = lambda plan, command: run_stage(plan, command, screen, lock)
        begun = time.monotonic()
        try:
            code = engine.run(show)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on from here") from interrupt
    if code != 0:
        _print_failure(last[0])
        return code
    report(engine, time.monotonic() - begun)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("run")
    parser.add_argument("recipe", metavar="NAME|PATH")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--output", default="runs")
    for flag in ("--fresh", "--no-baseline", "--dry-run"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if not options.seed.isdigit():
        raise ConfigurationError(f"--seed {options.seed}: a seed is a whole number, 0 or more")
    options.seed = int(options.seed)
    return options


def _check_stages(recipe: Recipe, source: str) -> None:
    """Finds what can be found wrong with any stage before the first one runs."""
    for stage in recipe.stages:
        where = f"{source}: stage {stage.base!r}"
        try:
            for part in stage.config:
                at = find_config(part) if isinstance(part, str) else Path("config")
                check_content(at, load(at) if isinstance(part, str) else part, stage.command)
            words = [_unreferred(word) for word in stage.arguments]
            if stage.command == "export":
                continue
            if not stage.config and not words:
                raise ConfigurationError("it has neither config nor arguments")
            words += ["--name", stage.name]
            if stage.command == "generate":
                generate.read(words, weights=False)
            else:
                read_request(stage.command, words, weights=False)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error


def _unreferred(word: str) -> str:
    """An argument whose value is a product that is not made yet, without that value."""
    if "${" not in word:
        return word
    return f"{word.partition('=')[0]}=null" if word.startswith("-") else "null"


def _not_started(plan: Plan, command: list[str]) -> int:
    raise AssertionError("a dry run starts nothing")


def _print_plans(engine: Engine) -> None:
    for number, stage in enumerate(engine.recipe.stages, start=1):
        plan = engine.plan(stage)
        what = {"skip": "skipped", "resume": "goes on", "run": "runs"}[plan.action]
        print(f"[{number}/{len(engine.recipe.stages)}] {stage.name}: {what} ({plan.reason})")
        if plan.action != "skip":
            print(f"    kdlightning {stage.command} {shlex.join(plan.arguments)}")


def _print_failure(plan: Plan) -> None:
    for line in tail(plan.log):
        print(f"  | {line}", file=sys.stderr)
    print(f"kdlightning: stage {plan.stage.name!r} failed; its log is {plan.log}", file=sys.stderr)


def report(engine: Engine, seconds: float) -> None:
    """The table, the chart, and where to look next."""
    from kdlightning.commands.words import duration

    rows: list[Row] = []
    for stage in engine.recipe.stages:
        run = engine.state.get(stage.name, {}).get("run")
        result = read_result(Path(run)) if run and stage.role else None
        if result is not None:
            rows.append((stage.label, Path(run), result))
    print()
    rows = _with_given_teacher(rows, [stage.role for stage in engine.recipe.stages])
    if rows:
        _print_table(rows)
        picture = _chart(engine, rows)
        print(f"\nchart:       {picture}")
    print(f"TensorBoard: tensorboard --logdir {engine.runs / engine.recipe.name}")
    exported = [(run, result) for _, run, result in rows if result.get("export")]
    if exported:
        run, result = exported[-1]
        print(f"student:     {run / result['export']['path']}")
        print(f"load it:     {result['export']['load']}")
    print(f"all stages:  {duration(seconds)}")


def _with_given_teacher(rows: list[Row], roles: list[str | None]) -> list[Row]:
    """A teacher that no stage trains has a line too: what a student's run measured of it."""
    taught = next((row for row in rows if row[2].get("teacher")), None)
    if "teacher" in roles or taught is None:
        return rows
    _, run, result = taught
    short = headline(result)
    metrics = {
        split: {"last": {short: (values.get("last") or {}).get(f"teacher_{short}")}}
        for split, values in result["metrics"].items()
    }
    given = {"metrics": metrics, "monitor": result["monitor"], "student": result["teacher"]}
    return [("teacher, as given", run, given), *rows]


def score(result: dict[str, Any], checkpoint: str) -> tuple[str, float | None]:
    """The headline on the test split, or on validation where there is no test split."""
    short = headline(result)
    for split in ("test", "val"):
        found = result["metrics"].get(split, {})
        values = found.get(checkpoint) or (found.get("built") if checkpoint == "last" else None)
        if values and values.get(short) is not None:
            return f"{split}/{short}", values[short]
    return f"test/{short}", None


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    name, _ = score(rows[-1][2], "last")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in (f"{name} last", "best*", "agreement", "parameters", "latency", "file"):
        table.add_column(title, justify="right")
    for label, _, result in rows:
        student = result["student"]
        table.add_row(
            label,
            _number(score(result, "last")[1]),
            _number(score(result, "best")[1]),
            _number(_agreement(result)),
            f"{student['parameters']:,}",
            f"{student['latency_ms']:.2f} ms" if student.get("latency_ms") else "",
            _size(student.get("file_bytes") or student["bytes"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    on_test = any(result.get("validates_on_test") for _, _, result in rows)
    print(
        f"\n* chosen {'on test, not reportable' if on_test else 'by validation'}; last is the headline. "
        "agreement: with the teacher. latency: one sample on the CPU."
    )
    for note in sorted({note for _, _, result in rows for note in result.get("notes", [])}):
        print(f"note: {note}")


def _agreement(result: dict[str, Any]) -> float | None:
    for split in ("test", "val"):
        value = (result["metrics"].get(split, {}).get("last") or {}).get("agreement")
        if value is not None:
            return value
    return None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _chart(engine: Engine, rows: list[Row]) -> Path:
    from kdlightning.commands.chart import draw, write_chart

    results = {label: result for label, _, result in rows}
    bars = {label: value for label, result in results.items() if (value := score(result, "last")[1]) is not None}
    title = f"{score(rows[-1][2], 'last')[0]} (last checkpoint)"
    return write_chart(engine.folder, draw(results, rows[-1][2]["monitor"]["name"], bars, title))
