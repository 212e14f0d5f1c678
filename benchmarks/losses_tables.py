"""Tables of the comparison with public implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paired import markdown

RESULTS = Path(__file__).parent / "results" / "losses"
BOUND = 1.05


def digits(row: dict[str, Any]) -> str:
    """How many digits two implementations share."""
    worst = max(row["value_difference"], row["gradient_difference"])
    return "all" if worst < 1e-13 else f"{worst:.0e}"


def records() -> dict[str, list[dict[str, Any]]]:
    """The finished measurements by method."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def verification_table() -> str:
    """Which public code agrees with each function, and which differs and why."""
    rows = [["function", "paper", "form", "public code", "largest relative difference", "remark"]]
    for found in records().values():
        for case in found:
            head = [f"`{case['function']}`", case["paper"], case["form"]]
            if not case["peers"]:
                rows.append([*head, "–", "", case["none"]])
            for peer in case["peers"]:
                words = digits(peer) if peer["agrees"] else "differs"
                link = f"https://github.com/{peer['repository']}/blob/{peer['commit']}/{peer['path']}"
                rows.append([*head, f"[{peer['repository']}]({link})", words, peer["note"]])
                head = ["", "", ""]
    return markdown(rows)


def speed_table() -> str:
    """Ours over the fastest public implementation that agrees."""
    rows = [["function", "fastest that agrees", "shape", "ours, ms", "theirs, ms", "time", "memory", "holds"]]
    for found in records().values():
        for case in found:
            right = [peer for peer in case["peers"] if peer["agrees"]]
            for number in range(len(case["shapes"]) if right else 0):
                fastest = min(right, key=lambda peer: peer["shapes"][number]["theirs_ms"])
                one = fastest["shapes"][number]
                holds = one["time_ratio"] <= BOUND and one["memory_ratio"] <= BOUND
                shape = "×".join(str(size) for size in one["shape"])
                times = [f"{one['ours_ms']:.3g}", f"{one['theirs_ms']:.3g}", f"{one['time_ratio']:.2f}"]
                words = [f"`{case['function']}`", fastest["repository"]] if number == 0 else ["", ""]
                rows.append([*words, shape, *times, f"{one['memory_ratio']:.2f}", "yes" if holds else "no"])
    return markdown(rows)
