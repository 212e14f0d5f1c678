"""Chooses the weight of a feature or relation term on validation: tries some, names the best, changes nothing.

    python benchmarks/weights.py --data FOLDER --methods offline/feature/nst offline/relation/pkt
    python benchmarks/weights.py --table

The weights of papers belong to their networks and images. Each candidate is the shipped weight times a factor, three
seeds (100 to 102, of which no result is reported), half the epochs with the whole schedule of the learning rate,
accuracy of the last checkpoint on the validation split. Records lie in `results/weights/`; a shipped configuration
then names the weight that won.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_groups import Group, groups
from accuracy_workers import Job, command, newest_result, run_jobs
from paired import markdown, score, write

from kdlightning.commands.shipped import shipped

RESULTS = Path(__file__).parent / "results" / "weights"
SEEDS = (100, 101, 102)
EPOCHS = 30
_WEIGHT = re.compile(r"^(\s+weight: )([0-9.e+-]+)", re.MULTILINE)


def shipped_weight(name: str) -> float | None:
    """The weight of the configuration's callback; None if it has none, or a schedule."""
    found = _WEIGHT.findall(shipped()[name].read_text())
    return float(found[0][1]) if len(found) == 1 else None


def jobs_of(group: Group, name: str, options: argparse.Namespace) -> list[Job]:
    """What is still to do for one method."""
    weight = shipped_weight(name)
    jobs = []
    for factor in options.factors if weight is not None else ():
        value = float(f"{weight * factor:.3g}")
        run = f"weights/{name.replace('/', '.')}/{value:g}"
        path = options.work / "configs" / f"{run}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# run: {run}\n" + _WEIGHT.sub(rf"\g<1>{value!r}", shipped()[name].read_text()))
        for seed in SEEDS:
            record = RESULTS / name.replace("/", ".") / f"{value:g}" / f"seed{seed}.json"
            words = command(path, seed, options, group.file)
            words += [f"--trainer.max_epochs={EPOCHS}", f"--model.init_args.lr_scheduler.init_args.T_max={EPOCHS}"]
            if not record.is_file():
                jobs.append(
                    Job(f"{name} {value:g} seed {seed}", words, options.work / "runs" / run / f"seed{seed}", record)
                )
    return jobs


def keep(job: Job, used: dict[str, float]) -> None:
    """Writes a finished run's record."""
    write(job.record, {"val_acc": score(newest_result(job), "acc", "val")})


def table() -> str:
    """Validation accuracy of each weight, the best in bold."""
    rows = [["configuration", "validation accuracy by weight"]]
    for folder in sorted(RESULTS.glob("*")):
        found: dict[float, Any] = {}
        for place in folder.iterdir():
            values = [json.loads(path.read_text())["val_acc"] for path in place.glob("seed*.json")]
            found[float(place.name)] = statistics.fmean(values)
        best = max(found, key=lambda weight: found[weight])
        words = [f"{'**' if w == best else ''}{w:g}: {found[w]:.4f}{'**' if w == best else ''}" for w in sorted(found)]
        rows.append([f"`{folder.name.replace('.', '/')}`", ", ".join(words)])
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> str:
    group = groups()["mnist1d"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("KDLIGHTNING_DATA")
    parser.add_argument("--methods", nargs="+", choices=group.methods, default=group.methods, help="all by default")
    parser.add_argument(
        "--factors", nargs="+", type=float, default=[0.01, 0.1, 1.0, 10.0], help="of the shipped weight"
    )
    parser.add_argument("--data", type=Path, default=folder and Path(folder), help="folder of mnist1d.npz")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/accuracy"), help="where runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        options.work = options.work.resolve()
        options.data = options.data and options.data.resolve()
        jobs = [job for name in options.methods for job in jobs_of(group, name, options)]
        run_jobs(jobs, options.jobs, options, keep)
    print(text := table())
    return text


if __name__ == "__main__":
    main()
