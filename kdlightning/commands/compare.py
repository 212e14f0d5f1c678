"""`kdlightning compare`: finished runs side by side, from their `result.json` alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdlightning.commands.groups import Group, Metric, choose_metric, group_runs, pair_with_baselines
from kdlightning.commands.options import Parser
from kdlightning.commands.runs import results_below
from kdlightning.errors import ConfigurationError, nearest

_CHECKPOINTS = ("last", "best")


def main(arguments: list[str]) -> int:
    """Prints the table as Markdown or JSON."""
    options = _parse(arguments)
    found = list(results_below(options.runs))
    metric = choose_metric([result for _, result in found], options.metric, options.checkpoint)
    groups = group_runs(found, metric)
    pair_with_baselines(groups, options.baseline)
    left_out = len(found) - sum(metric.read(result) is not None for _, result in found)
    if options.json:
        print(json.dumps(as_json(groups, metric), indent=2))
    else:
        print(as_markdown(groups, metric))
        if left_out:
            print(f"\n{left_out} run(s) without {metric} are left out.")
    if options.chart:
        chart(groups, metric, Path(options.chart))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("compare")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--metric")
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--baseline")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chart")
    options = parser.parse_args(arguments)
    if options.checkpoint not in _CHECKPOINTS:
        raise ConfigurationError(f"--checkpoint {options.checkpoint}{nearest(options.checkpoint, _CHECKPOINTS)}")
    return options


def as_markdown(groups: list[Group], metric: Metric) -> str:
    """A Markdown table, a line for each configuration."""
    rows = [["config", f"{metric} ({metric.checkpoint})", "seeds", "difference to labels alone", "parameters"]]
    for group in groups:
        size = group.first.get("student", {}).get("parameters")
        rows.append(
            [
                f"{group.name} (labels alone)" if group.baseline else group.name,
                _with_deviation(group.mean, group.deviation),
                str(len(group.values)),
                _difference(group),
                f"{size:,}" if size is not None else "",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = sorted({note for group in groups for result in group.results.values() for note in result.get("notes", [])})
    return "\n".join([*lines, *(["", *(f"Note: {note}." for note in notes)] if notes else [])])


def _with_deviation(mean: float, deviation: float | None) -> str:
    return f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _difference(group: Group) -> str:
    if group.difference is None:
        return ""
    mean, deviation, pairs = group.difference
    spread = f" ± {deviation:.4f}" if deviation is not None else ""
    return f"{mean:+.4f}{spread} ({pairs} pair{'s' if pairs > 1 else ''})"


def as_json(groups: list[Group], metric: Metric) -> dict[str, Any]:
    """The same numbers, and each seed's own."""
    rows = []
    for group in groups:
        difference = group.difference
        rows.append(
            {
                "config": group.name,
                "labels_alone": group.first["labels_alone"],
                "mean": group.mean,
                "deviation": group.deviation,
                "values": [{"seed": s, "value": v, "run": str(group.runs[s])} for s, v in group.values.items()],
                "difference": None
                if difference is None
                else {"mean": difference[0], "deviation": difference[1], "pairs": difference[2]},
                "parameters": group.first.get("student", {}).get("parameters"),
                "notes": group.first.get("notes", []),
            }
        )
    return {"metric": str(metric), "checkpoint": metric.checkpoint, "groups": rows}


def chart(groups: list[Group], metric: Metric, folder: Path) -> Path:
    """Curves of each configuration's first seed, and bars of the means."""
    from kdlightning.commands.chart import draw, write_chart

    runs = {group.name: group.first for group in groups}
    bars = {group.name: group.mean for group in groups}
    monitor = groups[0].first["monitor"]["name"]
    return write_chart(folder, draw(runs, monitor, bars, f"{metric} ({metric.checkpoint})"))
