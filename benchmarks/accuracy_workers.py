"""Runs commands of kdlightning one process each, forked from one that has imported what they need."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        title: for the progress lines.
        words: the command's words.
        runs: the folder of its runs.
        record: where its record goes.
    """

    title: str
    words: list[str]
    runs: Path
    record: Path


def command(config: Path, seed: int, options: argparse.Namespace, file: str | None) -> list[str]:
    """The words that train a configuration, on a file of the data folder if there are both."""
    words = ["fit", "-c", str(config), f"--seed_everything={seed}", "--trainer.accelerator=cpu"]
    return words + ([f"--data.path={options.data / file}"] if file and options.data else [])


def newest_result(job: Job) -> dict[str, Any]:
    """What the last run of a job left behind."""
    newest = max(job.runs.glob("version_*/result.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


def run_jobs(
    jobs: Sequence[Job], at_once: int, options: argparse.Namespace, keep: Callable[[Job, dict[str, float]], None]
) -> None:
    """Runs all, several at a time; `keep` is called with each that is finished and what it used.

    Raises:
        SystemExit: one failed; its log is named, and the others are finished first.
    """
    if not jobs:
        return
    _prepare(options)
    waiting, alive, failed = list(jobs), {}, []
    while waiting or alive:
        while waiting and len(alive) < at_once:
            job = waiting.pop(0)
            alive[_start(job, options)] = (job, time.perf_counter())
        number, status = os.wait()
        job, begin = alive.pop(number)
        used_file = _used(job, options)
        if status or not used_file.is_file():
            failed.append(job)
            continue
        memory, epoch = (float(value) for value in used_file.read_text().split())
        keep(job, {"peak_memory_mb": round(memory, 1), "epoch_seconds": round(epoch, 4)})
        done = len(jobs) - len(waiting) - len(alive)
        print(f"{done} of {len(jobs)}: {job.title}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    if failed:
        raise SystemExit("\n".join(f"{job.title} failed; its log is {_log(job, options)}" for job in failed))


def _prepare(options: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "logs").mkdir(exist_ok=True)
    # Imported once, here; a child that forks off has them. Nothing is computed before the fork.
    import timm  # noqa: F401
    import transformers  # noqa: F401

    import kdlightning.commands.train  # noqa: F401


def _log(job: Job, options: argparse.Namespace) -> Path:
    return options.work / "logs" / (job.title.replace("/", ".").replace(" ", "-") + ".log")


def _used(job: Job, options: argparse.Namespace) -> Path:
    return _log(job, options).with_suffix(".used")


def _start(job: Job, options: argparse.Namespace) -> int:
    _used(job, options).unlink(missing_ok=True)
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        code = _child(job, options)
    except BaseException as error:  # the parent must not be run a second time
        print(error, file=sys.stderr)
    finally:
        os._exit(code)


def _child(job: Job, options: argparse.Namespace) -> int:
    log = os.open(_log(job, options), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(options.work)
    import torch

    torch.set_num_threads(options.threads)
    before = _resident()
    epochs = _watch_epochs()
    from kdlightning.cli import main

    # Lightning starts further processes, if a configuration asks for several, with this one's own command line.
    sys.argv = [str(Path(sys.executable).with_name("kdlightning")), *job.words]
    code = main(job.words)
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        lengths = sorted(b - a for a, b in zip(epochs, epochs[1:], strict=False))
        _used(job, options).write_text(f"{peak} {lengths[len(lengths) // 2] if lengths else 0.0}")
    return code


def _resident() -> float:
    """Megabytes that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _watch_epochs() -> list[float]:
    """The moments at which training epochs begin, filled while a run goes."""
    import lightning.pytorch as pl

    moments: list[float] = []
    before = pl.LightningModule.on_train_epoch_start

    def start(module: pl.LightningModule) -> None:
        moments.append(time.perf_counter())
        before(module)

    pl.LightningModule.on_train_epoch_start = start  # type: ignore[method-assign]
    return moments
