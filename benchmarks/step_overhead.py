"""A training step under the Trainer against the same step written by hand in PyTorch.

    python benchmarks/step_overhead.py                 # about 15 minutes on two idle cores
    python benchmarks/step_overhead.py --quick         # few short blocks; writes no file

Both variants live in one process and train equal copies of one student from one set of weights, with equal optimizers
(SGD with momentum), on data in memory. A callback stops the Trainer at block boundaries and runs a block of the hand
loop there; which of the two goes first alternates. The ratio is hand-written time / ours, its median over the blocks
with a bootstrapped 90 % interval; a bound holds if the interval reaches it.

On for ours: the loader of kdlightning with sample numbers, TensorBoard, logging every 50 steps (one block holds one
logging step), the progress lines, the best and the latest checkpoint (every 500 steps) and the history of
`kdlightning fit`, the seeds of each step, the guard against NaN. The hand loop has none of these: it reads rows of the
tensors, runs both networks and steps. Checked on the way: both compute the same loss in the first steps, a run without
taps has no hook in either network and a run with one tap has one in each.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning import Classification, OfflineDistillation
from kdlightning.callbacks import BestCheckpoint, FeatureKD, LatestCheckpoint
from kdlightning.commands.progress import Progress
from kdlightning.commands.quiet import quiet
from kdlightning.commands.recording import History
from kdlightning.data.arrays import ArrayData
from kdlightning.data.loader import ResumableLoader
from kdlightning.losses import AttentionTransfer

RESULTS = Path(__file__).parent / "results" / "step_overhead.json"
CLASSES, SIDE, SAMPLES, FEATURE_WEIGHT = 100, 32, 4096, 1000.0


@dataclass(frozen=True)
class Case:
    """A pair of timm models and what the ratio must reach; `taps` of student and teacher for a feature term."""

    teacher: str
    student: str
    bound: float | None
    taps: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return f"{self.teacher} → {self.student}" + (f", {self.taps[0]} by hook" if self.taps else "")


CASES = {
    "large": Case("resnet34", "resnet18", 0.97),
    "small": Case("resnet18", "test_resnet", 0.90),
    "feature": Case("resnet34", "resnet18", 0.95, taps=("layer2", "layer2")),
    "small_feature": Case("resnet18", "test_resnet", None, taps=("layer2", "layer2")),
}


class HandLoop:
    """What somebody writes who has no framework: KD at temperature 4 (0.1 and 0.9), perhaps attention transfer."""

    def __init__(self, student: nn.Module, teacher: nn.Module, taps: tuple[str, str] | None) -> None:
        self.student, self.teacher = student.train(), teacher.eval().requires_grad_(False)
        self.optimizer = make_optimizer(student.parameters())
        self.features: dict[str, Tensor] = {}
        self.with_features = taps is not None
        if taps is not None:
            student.get_submodule(taps[0]).register_forward_hook(self._keep("student"))
            teacher.get_submodule(taps[1]).register_forward_hook(self._keep("teacher"))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features[name] = output

        return hook

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One training step; gives the loss."""
        with torch.no_grad():
            target = self.teacher(images)
        logits = self.student(images)
        kd = F.kl_div((logits / 4).log_softmax(1), (target / 4).log_softmax(1), log_target=True, reduction="batchmean")
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * kd
        if self.with_features:
            ours, theirs = attention(self.features["student"]), attention(self.features["teacher"])
            loss = loss + FEATURE_WEIGHT * (ours - theirs).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(1).flatten(1))


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


class Interleaver(pl.Callback):
    """Runs blocks of the hand loop between blocks of the Trainer, and takes the times of both.

    The first `warmup` steps run side by side on the same batches, so that their losses can be compared.
    """

    def __init__(
        self, hand: Any, data: tuple[Tensor, Tensor], batch: int, blocks: int, steps: int, warmup: int
    ) -> None:
        self.hand, self.data, self.batch = hand, data, batch
        self.blocks, self.steps, self.warmup = blocks, steps, warmup
        self.wall: dict[str, list[float]] = {"hand": [], "ours": []}
        self.cpu: dict[str, list[float]] = {"hand": [], "ours": []}
        self.losses: list[tuple[float, float]] = []
        self.hooks: tuple[int, int] = (-1, -1)
        self._began = (0.0, 0.0)
        self._loss = 0.0
        self._order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1))
        self._position = 0

    @property
    def last_step(self) -> int:
        """The step whose start closes the last block."""
        return self.warmup + self.blocks * self.steps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        if batch_idx == 0:
            taught = module.teacher is not None
            self.hooks = count_hooks(module.student), count_hooks(module.teacher.network) if taught else 0
        if batch_idx < self.warmup:
            self._loss = float(self.hand.step(*batch.data))
        elif (batch_idx - self.warmup) % self.steps == 0:
            self._boundary((batch_idx - self.warmup) // self.steps)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx < self.warmup:
            self.losses.append((self._loss, float(outputs["loss"])))

    def _boundary(self, block: int) -> None:
        """Ends our last block, runs the hand blocks that lie here (hand, ours, ours, hand, …), starts our next."""
        now = clocks()
        if block > 0:
            self._add("ours", self._began, now)
            if block % 2 == 0:
                self._run_hand()
        if block < self.blocks and block % 2 == 0:
            self._run_hand()
        self._began = clocks()

    def _run_hand(self) -> None:
        began = clocks()
        for _ in range(self.steps):
            if self._position + self.batch > len(self._order):
                self._position = 0
            rows = self._order[self._position : self._position + self.batch]
            self._position += self.batch
            self.hand.step(self.data[0][rows], self.data[1][rows])
        self._add("hand", began, clocks())

    def _add(self, variant: str, began: tuple[float, float], ended: tuple[float, float]) -> None:
        self.wall[variant].append(ended[0] - began[0])
        self.cpu[variant].append(ended[1] - began[1])


def clocks() -> tuple[float, float]:
    """Seconds on the wall, and of this process's threads."""
    return time.perf_counter(), time.process_time()


def count_hooks(model: nn.Module) -> int:
    """Hooks of any kind in a network."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def median_interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Median and the ends of its bootstrapped 90 % interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[int(0.05 * draws)], medians[int(0.95 * draws) - 1]


def make_model(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=CLASSES)


def train(case: Case, batch: int, blocks: int, steps: int, warmup: int) -> Interleaver:
    """Trains both variants, block by block."""
    pl.seed_everything(0, verbose=False)
    student, teacher = make_model(case.student, 0), make_model(case.teacher, 1)
    images, labels = torch.randn(SAMPLES, 3, SIDE, SIDE), torch.randint(CLASSES, (SAMPLES,))
    hand = HandLoop(copy.deepcopy(student), copy.deepcopy(teacher), case.taps)
    # One epoch, which ends behind the last block: what ends an epoch is no part of a step.
    watch = Interleaver(hand, (images, labels), batch, blocks, steps, warmup)
    rows = torch.arange((watch.last_step + 1) * batch) % SAMPLES
    loader = ResumableLoader(ArrayData(images, labels, rows=rows), batch_size=batch, shuffle=True)
    validation = ResumableLoader(ArrayData(images[:batch], labels[:batch]), batch_size=batch, shuffle=False)
    module = OfflineDistillation(student, teacher=teacher, task=Classification(CLASSES), optimizer=make_optimizer)
    features = [FeatureKD(AttentionTransfer(), dict([case.taps]), weight=FEATURE_WEIGHT)] if case.taps else []
    fit(module, watch, features, loader, validation)
    return watch


def fit(module: pl.LightningModule, watch: Interleaver, callbacks: Sequence[pl.Callback], *loaders: Any) -> None:
    """One epoch with all that `kdlightning fit` has on."""
    with tempfile.TemporaryDirectory() as folder, quiet(), redirect_stdout(sys.stderr):
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=[watch, *callbacks, History(), Progress(), BestCheckpoint(), LatestCheckpoint()],
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            default_root_dir=folder,
            enable_model_summary=False,
        )
        gc.collect()
        trainer.fit(module, *loaders)


def check(case: Case, watch: Interleaver) -> None:
    """Both variants do the same, and nothing is hooked that nobody reads."""
    expected = (1, 1) if case.taps else (0, 0)
    assert watch.hooks == expected, f"{case.name}: {watch.hooks} hooks in student and teacher instead of {expected}"
    by_hand, ours = watch.losses[0]
    assert abs(by_hand - ours) <= 1e-5 * max(abs(by_hand), 1.0), f"{case.name}: losses {by_hand} by hand, {ours} ours"
    counts = len(watch.wall["hand"]), len(watch.wall["ours"])
    assert counts == (watch.blocks, watch.blocks), f"{case.name}: {counts} blocks by hand and ours, not {watch.blocks}"


def measure(case: Case, batch: int, blocks: int, steps: int, warmup: int) -> dict[str, Any]:
    """Trains, checks, and sums up."""
    watch = train(case, batch, blocks, steps, warmup)
    check(case, watch)
    ratio = median_interval(ratios(watch.wall))
    return {
        "case": case.name,
        "batch": batch,
        "milliseconds": {name: 1e3 * statistics.median(values) / steps for name, values in watch.wall.items()},
        "ratio": dict(zip(("median", "low", "high"), ratio, strict=True)),
        "ratio_of_sums": sum(watch.wall["hand"]) / sum(watch.wall["ours"]),
        "ratio_of_cpu_time": dict(
            zip(("median", "low", "high"), median_interval(ratios(watch.cpu)), strict=True),
        ),
        "first_loss": dict(zip(("hand", "ours"), watch.losses[0], strict=True)),
        "hooks": dict(zip(("student", "teacher"), watch.hooks, strict=True)),
        "bound": case.bound,
        "holds": None if case.bound is None else ratio[2] >= case.bound,
        "blocks": [{name: watch.wall[name][i] for name in watch.wall} for i in range(blocks)],
    }


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    return [by_hand / ours for by_hand, ours in zip(seconds["hand"], seconds["ours"], strict=True)]


HEADER = """\
| pair | by hand, ms | ours, ms | ratio (90 %) | ratio of sums | ratio of CPU time (90 %) | first loss | hooks | bound \
| holds |
|---|---|---|---|---|---|---|---|---|---|"""


def table_row(result: dict[str, Any]) -> str:
    times, loss, hooks = result["milliseconds"], result["first_loss"], result["hooks"]
    bound = "–" if result["bound"] is None else f"{result['bound']:.2f}"
    holds = {None: "–", True: "yes", False: "no"}[result["holds"]]
    wall, cpu = (
        f"{part['median']:.3f} ({part['low']:.3f}–{part['high']:.3f})"
        for part in (result["ratio"], result["ratio_of_cpu_time"])
    )
    return (
        f"| {result['case']} | {times['hand']:.1f} | {times['ours']:.1f} | {wall} | {result['ratio_of_sums']:.3f} "
        f"| {cpu} | {loss['hand']:.6f} = {loss['ours']:.6f} | {hooks['student']} + {hooks['teacher']} "
        f"| {bound} | {holds} |"
    )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short blocks, no file")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="all by default")
    parser.add_argument("--blocks", type=int, default=None, help="blocks of each variant (20; 4 if quick)")
    parser.add_argument("--steps", type=int, default=None, help="steps in a block (50; 10 if quick)")
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first block, at least one")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads; its own choice by default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    blocks, steps = options.blocks or (4 if options.quick else 20), options.steps or (10 if options.quick else 50)
    threads = torch.get_num_threads()
    print(f"CPU, batch {options.batch}, {SIDE}×{SIDE}, {blocks} blocks of {steps} steps, {threads} threads\n")
    print(HEADER)
    results = []
    for name in options.cases:
        results.append(measure(CASES[name], options.batch, blocks, steps, max(options.warmup, 1)))
        print(table_row(results[-1]), flush=True)
    if not options.quick and set(options.cases) == set(CASES):
        RESULTS.parent.mkdir(exist_ok=True)
        versions = {"torch": torch.__version__, "lightning": version("lightning"), "timm": timm.__version__}
        machine = {**versions, "threads": threads, "processor": platform.machine()}
        report = {**machine, "side": SIDE, "steps_per_block": steps, "results": results}
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
