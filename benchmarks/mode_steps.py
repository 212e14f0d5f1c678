"""What online and self-distillation add to the steps of their networks.

    python benchmarks/mode_steps.py                    # about 10 minutes on two idle cores
    python benchmarks/mode_steps.py --quick            # few short blocks; writes no file

Online: a step of deep mutual learning of K networks under the Trainer against K single steps written by hand (forward,
cross-entropy, backward, SGD with momentum, each network by itself and without any mutual term), block by block as in
`step_overhead.py`. The bound is 1.05 times the sum of the single steps.

PS-KD: what its table of earlier answers costs, forward and backward of the term less those of the same cross-entropy
with given targets, as a share of a single step by hand. The bound is 2 %.

All networks are timm's resnet18 at 32×32, batch 64, 100 classes, float32 on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from step_overhead import CLASSES, SAMPLES, SIDE, Interleaver, fit, make_model, make_optimizer, median_interval, ratios
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning import PSKD, Classification, OnlineDistillation
from kdlightning.data.arrays import ArrayData
from kdlightning.data.batch import Batch
from kdlightning.data.loader import ResumableLoader
from kdlightning.losses import soft_cross_entropy
from kdlightning.models.output import ModelOutput

RESULTS = Path(__file__).parent / "results" / "mode_steps.json"
TABLE = 50_000
"""Samples whose answers PS-KD remembers: those of CIFAR-100."""


class SingleSteps:
    """K networks, each trained by itself on the labels."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = [network.train() for network in networks]
        self.optimizers = [make_optimizer(network.parameters()) for network in networks]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of each; gives the first one's loss."""
        losses = []
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses[0]


def online(count: int, batch: int, blocks: int, steps: int) -> dict[str, Any]:
    """K peers against K single steps."""
    pl.seed_everything(0, verbose=False)
    networks = [make_model("resnet18", seed) for seed in range(count)]
    images, labels = torch.randn(SAMPLES, 3, SIDE, SIDE), torch.randint(CLASSES, (SAMPLES,))
    watch = Interleaver(SingleSteps(copy.deepcopy(networks)), (images, labels), batch, blocks, steps, 5)
    rows = torch.arange((watch.last_step + 1) * batch) % SAMPLES
    loader = ResumableLoader(ArrayData(images, labels, rows=rows), batch_size=batch, shuffle=True)
    validation = ResumableLoader(ArrayData(images[:batch], labels[:batch]), batch_size=batch, shuffle=False)
    module = OnlineDistillation(networks[0], networks[1:], task=Classification(CLASSES), optimizer=make_optimizer)
    fit(module, watch, [], loader, validation)
    share = [1 / ratio for ratio in ratios(watch.wall)]
    middle, low, high = median_interval(share)
    times = {name: 1e3 * statistics.median(values) / steps for name, values in watch.wall.items()}
    return {"case": f"DML of {count}", "milliseconds": times, "median": middle, "low": low, "high": high, "bound": 1.05}


def bookkeeping(batch: int, repeats: int) -> dict[str, Any]:
    """PS-KD's term against the same cross-entropy with given targets, beside a single step."""
    teacher = PSKD()
    teacher.bind(nn.Identity(), Classification(CLASSES))
    teacher.start(TABLE, 2, torch.device("cpu"))
    teacher.seen.fill_(True)
    logits, target = torch.randn(batch, CLASSES), torch.randn(batch, CLASSES).softmax(1)
    step = SingleSteps([make_model("resnet18", 0)])
    images, labels = torch.randn(batch, 3, SIDE, SIDE), torch.randint(CLASSES, (batch,))
    index = torch.randint(TABLE, (batch,))
    seen = Batch(images, labels, index=index, size=batch)

    def term() -> None:
        answer = logits.clone().requires_grad_()
        teacher.loss(ModelOutput(answer), ModelOutput(), seen, 0.5, 1.0).backward()

    def plain() -> None:
        answer = logits.clone().requires_grad_()
        soft_cross_entropy(answer, target).backward()

    shares, times = [], {"hand": [], "ours": []}
    for _ in range(repeats):
        whole, ours, alone = timed(lambda: step.step(images, labels), 3), timed(term, 50), timed(plain, 50)
        shares.append((ours - alone) / whole)
        times["hand"].append(1e3 * whole)
        times["ours"].append(1e3 * (ours - alone))
    middle, low, high = median_interval(shares)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"case": "PS-KD's table", "milliseconds": medians, "median": middle, "low": low, "high": high, "bound": 0.02}


def timed(work: Callable[[], Any], times: int) -> float:
    """Seconds of one call, the mean of some in a row."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row a case."""
    lines = ["| case | by hand, ms | ours, ms | share (90 %) | bound | holds |", "|---|---|---|---|---|---|"]
    for each in results:
        times = each["milliseconds"]
        share = f"{each['median']:.3f} ({each['low']:.3f}–{each['high']:.3f})"
        holds = "yes" if each["low"] <= each["bound"] else "no"
        lines.append(
            f"| {each['case']} | {times['hand']:.1f} | {times['ours']:.2f} | {share} | {each['bound']} | {holds} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short blocks, no file")
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads; its own choice by default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    blocks, steps = (2, 3) if options.quick else (12, 20)
    results = [online(count, options.batch, blocks, steps) for count in (2, 3)]
    results.append(bookkeeping(options.batch, blocks))
    print(table(results))
    if not options.quick:
        report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
