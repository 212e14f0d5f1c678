"""Tables and pictures of the finished runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accuracy_groups import Group
from paired import by_seed, difference_words, markdown, mean_words, paired_difference, score

RESULTS = Path(__file__).parent / "results" / "accuracy"
TIMES = Path(__file__).parent / "results" / "accuracy_times"


def place(group: Group, name: str, seed: int) -> Path:
    """Where a finished run's record lies."""
    return RESULTS / group.run_name(name).replace("/", ".") / f"seed{seed}.json"


def records(group: Group, name: str) -> list[dict[str, Any]]:
    """The finished runs of a configuration."""
    return [json.loads(path.read_text()) for path in sorted(place(group, name, 0).parent.glob("seed*.json"))]


def measured(group: Group, name: str) -> dict[str, float]:
    """Time of an epoch and peak memory of a configuration; empty if they were not measured."""
    path = TIMES / f"{group.name}.{name.replace('/', '.')}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def rows_of(group: Group) -> Iterator[list[str]]:
    """A row for each teacher, the baseline and each method; a missing run shows in its number of seeds."""
    baseline = by_seed(records(group, group.baseline), group.metric)
    alone = measured(group, group.baseline)
    named = [(name, "first") for name in group.teachers if name != group.baseline]
    for name, role in [*named, (group.baseline, "labels alone"), *((method, "") for method in group.methods)]:
        found = records(group, name)
        values = by_seed(found, group.metric)
        agreement = [value for each in found if (value := score(each, "agreement")) is not None]
        used = measured(group, name)
        share = used["epoch_seconds"] / alone["epoch_seconds"] if used and alone else None
        yield [
            f"`{name}`" + (f" ({role})" if role == "labels alone" else " (seed 0)" if role else ""),
            mean_words(list(values.values())),
            difference_words(None if role else paired_difference(values, baseline)),
            mean_words(agreement, 3),
            "" if share is None else f"{used['epoch_seconds']:.2f} s, {share:.2f}×",
            f"{used['peak_memory_mb']:.0f}" if used else "",
            f"{len(values)} of {1 if role == 'first' else group.seeds}",
        ]


def tables(found: Iterable[Group]) -> str:
    """All groups."""
    parts = []
    for group in found:
        head = ["configuration", f"test {group.metric}", "difference (95 %)", "agreement"]
        head += ["an epoch", "memory, MB", "seeds"]
        parts.append(f"**{group.title}**\n\n{markdown([head, *rows_of(group)])}")
    return "\n\n".join(parts)


def draw(found: Iterable[Group], folder: Path) -> None:
    """One picture a metric: paired differences with their intervals, by group."""
    found = list(found)
    for metric, words, scale in (
        ("acc", "test accuracy, percentage points: right is better", 100),
        ("miou", "test mean IoU, percentage points: right is better", 100),
        ("perplexity", "test perplexity: left is better", 1),
    ):
        chosen = [(group, _differences(group)) for group in found if group.metric == metric]
        _picture([(group, rows) for group, rows in chosen if rows], words, scale, folder / f"accuracy_{metric}.png")


def _differences(group: Group) -> list[tuple[str, Any]]:
    baseline = by_seed(records(group, group.baseline), group.metric)
    found = [(name, paired_difference(by_seed(records(group, name), group.metric), baseline)) for name in group.methods]
    return [(name, difference) for name, difference in found if difference is not None]


def _picture(chosen: list[tuple[Group, list[tuple[str, Any]]]], words: str, scale: float, path: Path) -> None:
    from matplotlib.figure import Figure

    if not chosen:
        return
    heights = [len(rows) + 1 for _, rows in chosen]
    figure = Figure(figsize=(9, 1.2 + 0.24 * sum(heights) + 0.5 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (group, rows) in zip(axes, chosen, strict=True):
        for number, (_, difference) in enumerate(rows):
            half = scale * (difference.high - difference.mean)
            axis.errorbar(scale * difference.mean, number, xerr=half, fmt="o", color="C0", capsize=3, markersize=4)
        axis.axvline(0, color="grey", linewidth=1)
        names = [name.removeprefix("offline/") for name, _ in rows]
        axis.set(yticks=range(len(rows)), yticklabels=names, ylim=(len(rows) - 0.4, -0.6))
        axis.set_title(group.title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[-1].set_xlabel(words)
    figure.suptitle("Difference to the same student on labels alone, paired by seed, 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=110)
