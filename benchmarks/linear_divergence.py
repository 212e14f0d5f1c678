"""`linear_divergence` against the dense form written by hand: time, memory, accuracy.

    python benchmarks/linear_divergence.py            # B·T = 2048, V = 32000, H = 256; some minutes
    python benchmarks/linear_divergence.py --quick    # small sizes, few blocks; writes no file

Time: blocks of the two variants alternate in one process (forward and backward); the ratio is dense time / ours, its
median over the blocks with a bootstrapped 90 % interval. Memory: each variant once in a process of its own, the
highest resident set of the step minus the resident set before it. Accuracy: the gradients against the dense form in
float64, and those of bfloat16 inputs against float64 on the same inputs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import linear_divergence

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
MEMORY_BOUND, TIME_BOUND, BFLOAT_BOUND, FLOAT64_BOUND = 0.35, 1.2, 0.005, 1e-10
RESULTS = Path(__file__).parent / "results" / "linear_divergence.json"


def make_inputs(tokens: int, vocabulary: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Student states and weight (with gradients), teacher states and weight; logits of unit variance times 3."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, width), (vocabulary, width)) * 2
    tensors = [torch.empty(shape).normal_(generator=generator) for shape in shapes]
    for weight in (tensors[1], tensors[3]):
        weight.mul_(3 / math.sqrt(width))
    tensors = [tensor.to(dtype) for tensor in tensors]
    return [tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2], tensors[3]]


def dense(name: str, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    """The usual form: both full logits, two log-softmaxes, `kl_div`, mean over the tokens."""
    log_q = F.linear(hidden, weight).log_softmax(-1)
    with torch.no_grad():
        log_p = F.linear(teacher_hidden, teacher_weight).log_softmax(-1)
    if name == "forward_kl":
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    if name == "reverse_kl":
        return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    log_m = torch.logaddexp(log_p - math.log(2), log_q - math.log(2))
    teacher_part = F.kl_div(log_m, log_p, log_target=True, reduction="batchmean")
    return (teacher_part + F.kl_div(log_m, log_q, log_target=True, reduction="batchmean")) / 2


def chunked(name: str, *inputs: Tensor) -> Tensor:
    """Ours, with its default chunk."""
    return linear_divergence(*inputs, divergence=name)


VARIANTS: dict[str, Callable[..., Tensor]] = {"dense": dense, "ours": chunked}


def step(variant: str, name: str, inputs: list[Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    inputs[0].grad = inputs[1].grad = None
    start = time.perf_counter()
    VARIANTS[variant](name, *inputs).backward()
    return time.perf_counter() - start


def times(name: str, inputs: list[Tensor], blocks: int) -> dict[str, list[float]]:
    """Seconds of each block by variant; the variants alternate, and so does which of them goes first."""
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for variant in VARIANTS:
        step(variant, name, inputs)
    for block in range(blocks):
        for variant in sorted(VARIANTS, reverse=block % 2 == 1):
            seconds[variant].append(step(variant, name, inputs))
    return seconds


def median_interval(values: list[float], draws: int = 4000) -> tuple[float, float, float]:
    """Median and the ends of its bootstrapped 90 % interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[int(0.05 * draws)], medians[int(0.95 * draws) - 1]


def resident(field: str) -> float:
    """MB of this process: `VmRSS` (now) or `VmHWM` (highest so far)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(variant: str, name: str, sizes: tuple[int, int, int]) -> float:
    """Extra MB of one step, in this process."""
    step(variant, name, make_inputs(8, 64, 16))
    inputs = make_inputs(*sizes)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    step(variant, name, inputs)
    return resident("VmHWM") - before


def memory(variant: str, name: str, sizes: tuple[int, int, int]) -> float:
    """Extra MB of one step, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", variant, name, *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def gradients(variant: str, name: str, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(VARIANTS[variant](name, *inputs), inputs[:2]))


def accuracy(name: str, sizes: tuple[int, int, int]) -> tuple[float, float, float]:
    """Largest relative error of both gradients: ours in float64, ours and the dense form with bfloat16 inputs."""

    def error(found: list[Tensor], true: list[Tensor]) -> float:
        return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, true, strict=True))

    exact = make_inputs(*sizes, torch.float64)
    half = make_inputs(*sizes, torch.bfloat16)
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in half]
    true_half = gradients("dense", name, wide)
    return (
        error(gradients("ours", name, exact), gradients("dense", name, exact)),
        error(gradients("ours", name, half), true_half),
        error(gradients("dense", name, half), true_half),
    )


def measure(name: str, sizes: tuple[int, int, int], blocks: int) -> dict[str, Any]:
    seconds = times(name, make_inputs(*sizes), blocks)
    ratio = median_interval([own / ours for own, ours in zip(seconds["dense"], seconds["ours"], strict=True)])
    megabytes = {variant: memory(variant, name, sizes) for variant in VARIANTS}
    float64_error, bfloat_error, dense_bfloat_error = accuracy(name, (sizes[0] // 4, *sizes[1:]))
    share = megabytes["ours"] / megabytes["dense"]
    holds = (
        ratio[2] >= 1 / TIME_BOUND
        and share <= MEMORY_BOUND
        and float64_error <= FLOAT64_BOUND
        and bfloat_error < BFLOAT_BOUND
    )
    return {
        "divergence": name,
        "seconds": {variant: statistics.median(values) for variant, values in seconds.items()},
        "ratio": dict(zip(("median", "low", "high"), ratio, strict=True)),
        "extra_megabytes": megabytes,
        "memory_share": share,
        "float64_gradient_error": float64_error,
        "bfloat16_gradient_error": bfloat_error,
        "bfloat16_gradient_error_of_dense": dense_bfloat_error,
        "holds": holds,
    }


HEADER = """\
| divergence | dense, s | ours, s | dense / ours (90 %) | dense, MB | ours, MB | share | float64 error | bf16 error \
| bf16 error of dense | bounds hold |
|---|---|---|---|---|---|---|---|---|---|---|"""


def table_row(result: dict[str, Any], judged: bool) -> str:
    verdict = ("yes" if result["holds"] else "no") if judged else "full size only"
    ratio, seconds, megabytes = result["ratio"], result["seconds"], result["extra_megabytes"]
    return (
        f"| {result['divergence']} | {seconds['dense']:.2f} | {seconds['ours']:.2f} "
        f"| {ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}) "
        f"| {megabytes['dense']:.0f} | {megabytes['ours']:.0f} | {result['memory_share']:.3f} "
        f"| {result['float64_gradient_error']:.1e} | {result['bfloat16_gradient_error']:.2%} "
        f"| {result['bfloat16_gradient_error_of_dense']:.2%} | {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few blocks, no file")
    parser.add_argument("--blocks", type=int, default=None, help="blocks of each variant (20; 3 if quick)")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        variant, name, *sizes = options.memory_of
        tokens, vocabulary, width = map(int, sizes)
        print(measure_memory(variant, name, (tokens, vocabulary, width)))
        return
    shape = (512, 8000, 64) if options.quick else (2048, 32000, 256)
    blocks = options.blocks or (3 if options.quick else 20)
    load = os.getloadavg()[0]
    print(
        f"tokens {shape[0]}, vocabulary {shape[1]}, width {shape[2]}, float32, {torch.get_num_threads()} threads, "
        f"load {load:.1f} at the start\n"
    )
    print(HEADER)
    results = []
    for name in DIVERGENCES:
        results.append(measure(name, shape, blocks))
        print(table_row(results[-1], judged=not options.quick), flush=True)
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.machine()}
        machine |= {"load_at_start": load, "load_at_end": os.getloadavg()[0]}
        report = {"tokens": shape[0], "vocabulary": shape[1], "width": shape[2], "blocks": blocks, **machine}
        RESULTS.write_text(json.dumps({**report, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
