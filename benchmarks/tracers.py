"""Every shipped method on real data over several seeds, beside the same student on labels alone with the same budget.

    python benchmarks/tracers.py --data FOLDER            # about an hour on two cores; finished runs are skipped
    python benchmarks/tracers.py --groups digits          # needs no folder
    python benchmarks/tracers.py --table                  # only the table and the picture, from the finished runs

Each run is one command, `kdlightning fit -c NAME --seed_everything=N --then test`, and the shipped configuration as it
stands. A run that is finished leaves one record in `results/tracers/`. All students of a group learn from one teacher,
that of seed 0; a student's seed settles its weights, order of samples and augmentation. Reported is the test metric of
the last checkpoint, with differences to labels alone paired by seed. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired import by_seed, difference_words, markdown, mean_words, paired_difference, record, score, write

RESULTS = Path(__file__).parent / "results" / "tracers"


@dataclass(frozen=True)
class Group:
    """Methods that share data and student: what they are compared with, the teacher, and where the data lie."""

    title: str
    metric: str
    baseline: str
    methods: tuple[str, ...]
    teacher: str | None = None
    data: str | None = None
    seeds: int = 3


GROUPS = {
    "digits": Group(
        "scikit-learn's digits, 1,442 parameters, 60 epochs",
        "acc",
        "supervised/digits",
        (
            *("offline/response/kd", "offline/response/dkd", "offline/feature/fit_net"),
            *("offline/feature/attention_transfer", "offline/relation/rkd", "offline/relation/sp"),
            *("online/dml", "self/pskd", "self/mean_teacher"),
        ),
        teacher="supervised/digits_teacher",
        seeds=5,
    ),
    "cifar10": Group(
        "CIFAR-10, 15,000 images, timm test_resnet, 10 epochs",
        "acc",
        "supervised/cifar10",
        ("offline/response/kd_timm",),
        teacher="supervised/cifar10_teacher",
        data="cifar10_15k_3k.npz",
    ),
    "cifar10_vit": Group(
        "CIFAR-10, 15,000 images, timm test_vit, 10 epochs",
        "acc",
        "supervised/cifar10_vit",
        ("offline/feature/fit_net_cnn_to_vit",),
        teacher="supervised/cifar10_teacher",
        data="cifar10_15k_3k.npz",
    ),
    "sst2": Group(
        "SST-2, 6,920 sentences, BERT of 2 layers from random weights, 4 epochs",
        "acc",
        "supervised/sst2",
        ("offline/response/kd_encoder",),
        teacher="supervised/sst2_teacher",
        data="sst2",
    ),
    "shakespeare": Group(
        "tiny Shakespeare, GPT-2 of 2 layers, 4 epochs",
        "perplexity",
        "supervised/shakespeare",
        ("offline/response/forward_kl",),
        teacher="supervised/shakespeare_teacher",
        data="lm/tinyshakespeare.txt.gz",
    ),
    "on_policy": Group(
        "tiny Shakespeare, the trained GPT-2 of 2 layers, 1 epoch more",
        "perplexity",
        "supervised/shakespeare_continued",
        ("on_policy/gkd",),
        teacher="supervised/shakespeare_teacher",
        data="lm/tinyshakespeare.txt.gz",
    ),
    "svamp": Group(
        "SVAMP, 800 problems with PaLM's rationales, Llama of 2 layers from random weights, 10 epochs",
        "acc",
        "supervised/svamp_answers",
        ("blackbox/cot/fine_tune_cot",),
        data="svamp_palm_cot/train.jsonl.gz",
    ),
}
FIRST = ("supervised/shakespeare",)
"""Runs of seed 0 that other configurations begin from, besides the teachers."""


def place(config: str, seed: int) -> Path:
    """Where a finished run's record lies."""
    return RESULTS / config.replace("/", ".") / f"seed{seed}.json"


def run(config: str, seed: int, data: str | None, options: argparse.Namespace) -> None:
    """Trains and tests one configuration, unless it is done."""
    runs = options.work / "runs" / config / f"seed{seed}"
    if place(config, seed).is_file() and (seed or not _is_read(config) or any(runs.glob("*/checkpoints/last.ckpt"))):
        return
    words = ["fit", "-c", config, f"--seed_everything={seed}", "--then", "test", "--trainer.accelerator=cpu"]
    words += [f"--data.path={options.data / data}"] if data else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    print(f"{config} seed {seed}", flush=True)
    log = options.work / "logs" / f"{config.replace('/', '.')}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        command = [sys.executable, "-m", "kdlightning.cli", *words]
        code = subprocess.run(command, cwd=options.work, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if code.returncode:
        raise SystemExit(f"{config} seed {seed} failed; its log is {log}")
    newest = max(runs.glob("version_*/result.json"), key=lambda path: path.stat().st_mtime)
    write(place(config, seed), record(json.loads(newest.read_text())))


def _is_read(config: str) -> bool:
    return config in FIRST or any(config == group.teacher for group in GROUPS.values())


def run_all(options: argparse.Namespace) -> None:
    """Teachers first, then everything else, several at a time."""
    chosen = [GROUPS[name] for name in options.groups]
    first = {group.teacher: group.data for group in chosen if group.teacher}
    first |= {name: GROUPS["shakespeare"].data for name in FIRST if "on_policy" in options.groups}
    rest = [
        (config, seed, group.data)
        for group in chosen
        for seed in range(group.seeds)
        for config in (group.baseline, *group.methods)
        if seed > 0 or config not in first
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        for jobs in ([(config, 0, data) for config, data in first.items()], rest):
            list(pool.map(lambda job: run(*job, options), jobs))


def records(config: str) -> list[dict[str, Any]]:
    """The finished runs of a configuration."""
    return [json.loads(path.read_text()) for path in sorted(place(config, 0).parent.glob("seed*.json"))]


def rows_of(group: Group) -> Iterator[list[str]]:
    """A row for the teacher, the baseline and each method; a missing run shows in its number of seeds."""
    baseline = by_seed(records(group.baseline), group.metric)
    named = [(group.teacher, "teacher")] if group.teacher else []
    named += [(group.baseline, "labels alone"), *((method, "") for method in group.methods)]
    for config, role in named:
        found = records(config)
        values = by_seed(found, group.metric)
        count = 1 if role == "teacher" else group.seeds
        difference = None if role else paired_difference(values, baseline)
        agreement = [value for each in found if (value := score(each, "agreement")) is not None]
        yield [
            f"`{config}`" + (f" ({role})" if role else ""),
            mean_words(list(values.values())),
            difference_words(difference),
            mean_words(agreement, 3),
            f"{len(values)} of {count}",
        ]


def table() -> str:
    """All groups."""
    parts = []
    for group in GROUPS.values():
        head = ["configuration", f"test {group.metric}", "difference (95 %)", "agreement", "seeds"]
        parts.append(f"**{group.title}**\n\n{markdown([head, *rows_of(group)])}")
    return "\n\n".join(parts)


def draw(path: Path) -> None:
    """Paired differences with their intervals, accuracies and perplexities apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, metric, words in zip(
        figure.subplots(1, 2, width_ratios=[3, 2]),
        ("acc", "perplexity"),
        ("test accuracy, percentage points: right is better", "test perplexity: left is better"),
        strict=True,
    ):
        names, scale = [], 100 if metric == "acc" else 1
        for group in GROUPS.values():
            baseline = by_seed(records(group.baseline), group.metric)
            for method in group.methods if group.metric == metric else ():
                found = paired_difference(by_seed(records(method), metric), baseline)
                if found is not None:
                    half = scale * (found.high - found.mean)
                    axes.errorbar(scale * found.mean, len(names), xerr=half, fmt="o", color="C0", capsize=3)
                    names.append(method)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set(yticks=range(len(names)), yticklabels=names, title=words)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle("Difference to the same student on labels alone, paired by seed, 95 % intervals")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("KDLIGHTNING_DATA")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="all by default")
    parser.add_argument("--data", type=Path, default=folder and Path(folder), help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/tracers"), help="where runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.data is None and any(GROUPS[name].data for name in options.groups):
            parser.error("--data FOLDER (or KDLIGHTNING_DATA) must name the data sets; --groups digits needs none")
        options.work = options.work.resolve()
        options.data = options.data and options.data.resolve()
        run_all(options)
    text = table()
    print(text)
    draw(RESULTS.parent / "tracers.png")
    return text


if __name__ == "__main__":
    main()
