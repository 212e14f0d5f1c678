"""What the accuracy benchmarks share: finished runs as small records, and differences paired by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEPT = ("seed", "module", "monitor", "metrics", "seconds", "epochs", "steps", "notes", "versions")


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, their sample deviation, and the ends of the mean's 95 % interval (Student's t)."""

    mean: float
    deviation: float
    low: float
    high: float
    pairs: int

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.deviation / math.sqrt(self.pairs)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; None with fewer than two."""
    from scipy.stats import t

    values = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Difference(mean, deviation, mean - half, mean + half, len(values))


def record(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's `result.json` without its curves and places, for keeping."""
    student = {key: result["student"].get(key) for key in ("class", "parameters", "latency_ms")}
    config = {key: result["config"][key] for key in ("name", "hash")}
    return {"config": config, **{key: result[key] for key in _KEPT}, "student": student}


def score(result: Mapping[str, Any], name: str, split: str = "test", checkpoint: str = "last") -> float | None:
    """A metric of a record."""
    return (result["metrics"].get(split, {}).get(checkpoint) or {}).get(name)


def by_seed(results: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """A test metric of the last checkpoint by seed."""
    found = {int(result["seed"]): score(result, name) for result in results}
    return {seed: value for seed, value in found.items() if value is not None}


def mean_words(values: Sequence[float], digits: int = 4) -> str:
    """`0.9500 ± 0.0040`; the deviation is the sample's."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def difference_words(difference: Difference | None, digits: int = 4) -> str:
    """`+0.0400 (+0.0310 to +0.0490)`."""
    if difference is None:
        return ""
    return f"{difference.mean:+.{digits}f} ({difference.low:+.{digits}f} to {difference.high:+.{digits}f})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def write(path: Path, content: Any) -> None:
    """A file of JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)
