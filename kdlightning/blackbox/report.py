"""What was kept and what was dropped, one line for each answer of the teacher."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlightning.blackbox.base import Outcome, Problem, count_reasons
from kdlightning.errors import ConfigurationError


def write_report(
    path: Path, outcomes: Sequence[Outcome], problems: Mapping[int, Problem], parts: Mapping[int, str]
) -> None:
    """One object a line: record, sample, part, kept, reason, prediction, gold, question, texts, detail.

    Args:
        path: of the file, which is written whole or not at all.
        outcomes: one for each (record, sample).
        problems: by record number.
        parts: "train" or "val", by record number.
    """
    lines = []
    for outcome in outcomes:
        problem = problems[outcome.record]
        row: dict[str, Any] = {
            "record": outcome.record,
            "sample": outcome.sample,
            "part": parts[outcome.record],
            "kept": outcome.kept,
            "reason": outcome.reason,
            "prediction": outcome.prediction,
            "gold": problem.gold,
            "question": problem.question,
            "texts": dict(outcome.texts),
            "detail": outcome.detail,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    write_whole(path, "".join(f"{line}\n" for line in lines))


def read_report(path: Path) -> list[Outcome]:
    """The outcomes of a report."""
    try:
        # Not splitlines: it also splits at rarer line separators, which may stand inside a text.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [
            Outcome(row["record"], row["sample"], row["reason"], row["texts"], row["prediction"], row["detail"])
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no report; remove its folder, nothing stored is lost by that") from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: how many were kept, of which sources if a method names them, and how many dropped for which reason."""
    counts = count_reasons(outcomes)
    kept = counts.pop("kept")
    sources = ", ".join(f"{count} {source}" for source, count in count_sources(outcomes).items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    told = f" ({sources})" if sources else ""
    return f"{kept} of {len(outcomes)} answers kept{told}" + (f"; dropped: {dropped}" if dropped else "")


def count_sources(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many kept outcomes there are of each source, the most frequent first, in methods that name one in `texts`."""
    counts = Counter(each.texts["source"] for each in outcomes if each.kept and "source" in each.texts)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
