"""Finished runs in groups of one configuration: mean, deviation over seeds, difference to labels alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlightning.errors import ConfigurationError, nearest


@dataclass
class Group:
    """All runs of one configuration.

    Attributes:
        name: the configuration's name; with its hash where the name alone would not be unique.
        values: the metric by seed, of each seed's newest run.
        results: the same runs' results.
        seconds: training time of each.
        difference: mean and deviation of the paired differences to the baseline, and how many pairs; None without one.
    """

    name: str
    values: dict[int | None, float] = field(default_factory=dict)
    results: dict[int | None, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int | None, Path] = field(default_factory=dict)
    difference: tuple[float, float | None, int] | None = None
    baseline: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def first(self) -> dict[str, Any]:
        """The result of one of the runs."""
        return next(iter(self.results.values()))


@dataclass(frozen=True)
class Metric:
    """A number of a result: split, name and checkpoint."""

    split: str
    name: str
    checkpoint: str

    def read(self, result: dict[str, Any]) -> float | None:
        """Its value, or None if the result has it not."""
        return (result["metrics"].get(self.split, {}).get(self.checkpoint) or {}).get(self.name)

    def __str__(self) -> str:
        return f"{self.split}/{self.name}"


def headline(result: dict[str, Any]) -> str:
    """The metric that a run is judged by, without its split: the monitor, or what the test measures instead of it.

    Black-box methods monitor the perplexity of training texts, which are others in each method, and test the answers.
    """
    monitor = str(result["monitor"]["name"].split("/", 1)[-1])
    tested = [name for values in result["metrics"].get("test", {}).values() for name in values or {}]
    if monitor in tested:
        return monitor
    return next((name for name in tested if name != "loss" and not name.startswith("teacher_")), monitor)


def choose_metric(results: Sequence[dict[str, Any]], wanted: str | None, checkpoint: str) -> Metric:
    """The metric that a table shows.

    Args:
        results: all results.
        wanted: for example `test/acc`; None takes the headline on the test split, or else on the validation split.
        checkpoint: `last` or `best`.

    Raises:
        ConfigurationError: no result has it.
    """
    known = {
        f"{split}/{name}"
        for result in results
        for split, by in result["metrics"].items()
        for name in by.get(checkpoint) or {}
    }
    if wanted is not None:
        if wanted not in known:
            raise ConfigurationError(
                f"--metric {wanted}: no run has it of its {checkpoint} checkpoint{nearest(wanted, known)}"
            )
        split, _, name = wanted.partition("/")
        return Metric(split, name, checkpoint)
    names = [headline(result) for result in results]
    for split in ("test", "val"):
        for name in dict.fromkeys(names):
            if f"{split}/{name}" in known:
                return Metric(split, name, checkpoint)
    raise ConfigurationError(f"no run has metrics of its {checkpoint} checkpoint: test one, or use --checkpoint")


def group_runs(found: Sequence[tuple[Path, dict[str, Any]]], metric: Metric) -> list[Group]:
    """Groups by configuration, in the order found; runs without the metric are left out."""
    groups: dict[tuple[str, str], Group] = {}
    for path, result in found:
        value = metric.read(result)
        if value is None:
            continue
        name, digest, seed = result["config"]["name"], result["config"]["hash"], result["seed"]
        group = groups.setdefault((name, digest), Group(name))
        if seed in group.runs and _version(group.runs[seed]) > _version(path):
            continue
        group.values[seed], group.results[seed], group.runs[seed] = value, result, path
    names = [name for name, _ in groups]
    for (name, digest), group in groups.items():
        if names.count(name) > 1:
            group.name = f"{name} ({digest[:6]})"
    return list(groups.values())


def _version(path: Path) -> int:
    digits = path.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def pair_with_baselines(groups: list[Group], baseline: str | None = None) -> None:
    """Fills in each group's difference to its student on labels alone, seed by seed.

    Args:
        groups: changed in place.
        baseline: name of the configuration to compare with; None finds for each group the runs without any
            distillation that train the same student on the same data.

    Raises:
        ConfigurationError: no group has that name.
    """
    if baseline is not None and not any(_is(group, baseline) for group in groups):
        names = [group.name for group in groups]
        raise ConfigurationError(
            f"--baseline {baseline}: no such configuration among the runs{nearest(baseline, names)}"
        )
    for group in groups:
        for other in groups:
            chosen = _is(other, baseline) if baseline is not None else _same_student(group, other)
            if chosen and other is not group:
                other.baseline = True
                shared = [seed for seed in group.values if seed in other.values]
                differences = [group.values[seed] - other.values[seed] for seed in shared]
                if differences:
                    spread = statistics.stdev(differences) if len(differences) > 1 else None
                    group.difference = (statistics.fmean(differences), spread, len(differences))


def _is(group: Group, name: str) -> bool:
    return name in (group.name, group.first["config"]["name"])


def _same_student(group: Group, other: Group) -> bool:
    if group.first["labels_alone"] or not other.first["labels_alone"]:
        return False
    return group.first["config"]["student_hash"] == other.first["config"]["student_hash"]
