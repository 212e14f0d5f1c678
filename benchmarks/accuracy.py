"""Every shipped method over several seeds, beside the same student on labels alone with the same budget.

    python benchmarks/accuracy.py --data FOLDER           # all groups; finished runs are skipped
    python benchmarks/accuracy.py --groups mnist1d        # without a folder on signals that are made on the spot
    python benchmarks/accuracy.py --measure               # time of an epoch and memory, on an idle machine
    python benchmarks/accuracy.py --table                 # only the tables and pictures, from the finished runs

Each run is `kdlightning fit -c NAME --seed_everything=N --then test`: the shipped configuration as it stands (those of
the group `cifar10_small` with another pair of networks and the weights of the CRD benchmark). A run that is finished
leaves one record in `results/accuracy/`. All students of a group learn from the teachers of seed 0; a student's seed
settles its weights, order of samples and augmentation. Reported is the test metric of the last checkpoint, with
differences to labels alone paired by seed. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from accuracy_groups import Group, groups
from accuracy_tables import draw, place, tables
from accuracy_workers import Job, command, newest_result, run_jobs
from paired import record, write

HERE = Path(__file__).parent


def jobs_of(group: Group, options: argparse.Namespace) -> tuple[list[Job], list[Job]]:
    """What is still to do: runs that others begin from, then the rest."""
    first, rest = [], []
    wanted = [(name, 0) for name in group.first]
    chosen = [name for name in group.methods if not options.methods or name in options.methods]
    wanted += [(name, seed) for seed in range(group.seeds) for name in (group.baseline, *chosen)]
    for name, seed in dict.fromkeys(wanted):
        read = name in group.first and seed == 0
        kept = options.work / "runs" / group.run_name(name) / f"seed{seed}"
        if place(group, name, seed).is_file() and not (read and not any(kept.glob("*/checkpoints/last.ckpt"))):
            continue
        words = [*command(group.config(name, options.work), seed, options, group.file), "--then", "test"]
        (first if read else rest).append(Job(f"{group.name} {name} seed {seed}", words, kept, place(group, name, seed)))
    return first, rest


def keep(job: Job, used: dict[str, float]) -> None:
    """Writes a finished run's record."""
    given = next((word.rsplit("/", 1)[-1] for word in job.words if word.startswith("--data.path=")), None)
    # Signals that are made on the spot are other data than the file's: a record says which.
    write(job.record, {**record(newest_result(job)), "data": given, **used})


def measure(chosen: Sequence[Group], options: argparse.Namespace) -> None:
    """Time of an epoch and peak memory of each configuration, from short runs one after the other."""
    for group in chosen:
        for name in (group.baseline, *group.methods):
            out = HERE / "results" / "accuracy_times" / f"{group.name}.{name.replace('/', '.')}.json"
            if out.is_file():
                continue
            words = command(group.config(name, options.work), 0, options, group.file)
            words += [f"--trainer.max_epochs={options.epochs}", "--trainer.limit_val_batches=0"]
            words += ["--trainer.enable_progress_bar=false"]
            job = Job(f"{group.name} {name} time", words, options.work / "times" / group.name / name, out)
            run_jobs([job], 1, options, lambda job, used: write(job.record, used))


def main(arguments: Sequence[str] | None = None) -> str:
    found = groups()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("KDLIGHTNING_DATA")
    parser.add_argument("--groups", nargs="+", choices=list(found), default=list(found), help="all by default")
    parser.add_argument("--methods", nargs="+", help="configurations of these groups; all by default")
    parser.add_argument("--data", type=Path, default=folder and Path(folder), help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/accuracy"), help="where runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run that is measured")
    parser.add_argument("--measure", action="store_true", help="measure time and memory instead of accuracy")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    chosen = [found[name] for name in options.groups]
    if not options.table:
        if options.data is None and any(group.file and not group.made for group in chosen):
            parser.error("--data FOLDER (or KDLIGHTNING_DATA) must name the data sets; --groups mnist1d needs none")
        options.work = options.work.resolve()
        options.data = options.data and options.data.resolve()
        if options.measure:
            measure(chosen, options)
        else:
            parts = [jobs_of(group, options) for group in chosen]
            # One after the other, since some begin from those before them.
            run_jobs([job for first, _ in parts for job in first], 1, options, keep)
            run_jobs([job for _, rest in parts for job in rest], options.jobs, options, keep)
    text = tables(found.values())
    print(text)
    draw(found.values(), HERE / "results")
    return text


if __name__ == "__main__":
    main()
