"""Every loss beside public implementations on the same input: value, gradient, time, memory.

    python benchmarks/losses.py --peers FOLDER            # all methods, about 20 minutes on one core
    python benchmarks/losses.py --peers FOLDER --methods nst rkd --quick
    python benchmarks/losses.py --clone                   # prints the commands that fill FOLDER
    python benchmarks/losses.py --table                   # only the tables, from the finished measurements

FOLDER holds a checkout `owner+name` of each repository at the commit that `benchmarks/peers/` names; a checkout at
another commit is refused. Values and gradients are compared in float64, on the smallest shape. Times are of forward and
backward in float32 on one thread; ours and theirs alternate block by block, the ratio is taken within each pair of
blocks, and shown is its median over the pairs. Memory is the highest sum of tensor bytes alive in forward and backward
beyond the inputs and their gradients.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from losses_tables import RESULTS, speed_table, verification_table
from paired import write
from peers.base import Case, Peer
from peers.memory import peak_bytes
from torch import Tensor

WITHOUT_CASES = {
    "distillation_token": "is hard_label_loss or kd_loss of another head, which are compared",
    "mobile_bert_transfer": "the authors' code is in TensorFlow",
    "patient_kd": "the authors' code is inside their training script",
    "tiny_bert_hidden": "the authors' code is inside their training script",
}
"""Methods of which no public function can be called beside ours; the tests compare them with plain loops alone."""


def cases() -> dict[str, list[Case]]:
    """All cases by method."""
    found: dict[str, list[Case]] = {}
    for path in sorted((Path(__file__).parent / "peers").glob("*.py")):
        module = importlib.import_module(f"peers.{path.stem}")
        for case in getattr(module, "CASES", ()):
            found.setdefault(case.method, []).append(case)
    return found


def backward(function: Callable[..., Tensor], inputs: Sequence[Any]) -> tuple[float, list[Tensor]]:
    """The value, and the gradients of what requires grad (zeros where nothing flows)."""
    learned = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    value = function(*inputs)
    gradients = torch.autograd.grad(value, learned, allow_unused=True)
    return float(value.detach()), [
        torch.zeros_like(t) if g is None else g for g, t in zip(gradients, learned, strict=True)
    ]


def in_double(value: Any) -> Any:
    """A floating tensor in float64, a leaf again; lists of them too."""
    if isinstance(value, (list, tuple)):
        return type(value)(in_double(item) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def agreement(case: Case, theirs: Callable[..., Tensor]) -> dict[str, float]:
    """Relative differences of value and gradient in float64, by the largest element."""
    inputs = [in_double(v) for v in case.inputs(case.shapes[0], torch.Generator().manual_seed(0))]
    torch.manual_seed(1)
    value, gradients = backward(case.ours, inputs)
    torch.manual_seed(1)
    other, others = backward(theirs, inputs)
    largest = max((float(g.abs().max()) for g in others), default=0.0)
    difference = max((float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True)), default=0.0)
    return {
        "value": value,
        "theirs": other,
        "value_difference": abs(value - other) / max(abs(other), 1e-12),
        "gradient_difference": difference / max(largest, 1e-12),
    }


def seconds(function: Callable[..., Tensor], inputs: Sequence[Any], repeats: int) -> float:
    """Of one forward and backward, the mean of a block."""
    begin = time.perf_counter()
    for _ in range(repeats):
        backward(function, inputs)
    return (time.perf_counter() - begin) / repeats


def timed(case: Case, theirs: Callable[..., Tensor], shape: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Medians and ratios at one shape."""
    inputs = case.inputs(shape, torch.Generator().manual_seed(0))
    first = max(seconds(case.ours, inputs, 1), seconds(theirs, inputs, 1))
    repeats = max(1, int(options.block / max(first, 1e-6)))
    ours, others = [], []
    for number in range(options.blocks):
        pair = [(ours, case.ours), (others, theirs)]
        for times, function in pair if number % 2 else reversed(pair):
            times.append(seconds(function, inputs, repeats))
    memory = [peak_bytes(lambda f=f: backward(f, inputs)) for f in (case.ours, theirs)]  # type: ignore[misc]
    return {
        "shape": list(shape),
        "ours_ms": statistics.median(ours) * 1e3,
        "theirs_ms": statistics.median(others) * 1e3,
        "time_ratio": statistics.median(a / b for a, b in zip(ours, others, strict=True)),
        "ours_bytes": memory[0],
        "theirs_bytes": memory[1],
        "memory_ratio": memory[0] / max(memory[1], 1),
    }


def measure(case: Case, peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """One peer's row."""
    check_commit(options.peers, peer)
    theirs = peer.load(options.peers)
    row: dict[str, Any] = {"repository": peer.repository, "commit": peer.commit, "path": peer.path, "note": peer.note}
    row |= {"agrees": peer.agrees, **agreement(case, theirs)}
    row["shapes"] = [timed(case, theirs, shape, options) for shape in case.shapes]
    return row


def check_commit(folder: Path, peer: Peer) -> None:
    """Raises SystemExit for a checkout at another commit; a folder without git must say its commits in `COMMITS`."""
    name = peer.repository.replace("/", "+")
    head, listed = folder / name / ".git" / "HEAD", folder / "COMMITS"
    known = head.read_text().strip() if head.is_file() else ""
    if not known and listed.is_file():
        known = dict(line.split()[:2] for line in listed.read_text().splitlines() if line.strip()).get(name, "")
    if known != peer.commit:
        raise SystemExit(f"{folder / name} is not at {peer.commit}: see --clone for the commands")


def clone_commands() -> Iterator[str]:
    """What fills the folder of checkouts."""
    pins = {peer.repository: peer.commit for found in cases().values() for case in found for peer in case.peers}
    for repository, commit in sorted(pins.items()):
        name = repository.replace("/", "+")
        yield f"git clone -q https://github.com/{repository} {name} && git -C {name} checkout -q --detach {commit}"


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the checkouts")
    parser.add_argument("--methods", nargs="+", choices=sorted(cases()), help="all by default")
    parser.add_argument("--blocks", type=int, default=15, help="pairs of blocks")
    parser.add_argument("--block", type=float, default=0.1, help="seconds of a block, about")
    parser.add_argument("--quick", action="store_true", help="few short blocks, no file")
    parser.add_argument("--clone", action="store_true", help="print the commands that fill the folder")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    if options.clone:
        print(text := "\n".join(clone_commands()))
        return text
    if options.quick:
        options.blocks, options.block = 3, 0.02
    if not options.table:
        if options.peers is None:
            parser.error("--peers FOLDER must name the checkouts; --clone prints the commands that make them")
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        chosen = cases()
        for method in options.methods or chosen:
            measured = []
            for case in chosen[method]:
                print(f"{method}: {case.function}", file=sys.stderr, flush=True)
                peers = [measure(case, peer, options) for peer in case.peers]
                words = {key: getattr(case, key) for key in ("method", "function", "paper", "form", "none")}
                measured.append({**words, "shapes": [list(shape) for shape in case.shapes], "peers": peers})
            if not options.quick:
                write(RESULTS / f"{method}.json", measured)
            else:
                print(json.dumps(measured, indent=1))
    text = f"{verification_table()}\n\n{speed_table()}"
    print(text)
    return text


if __name__ == "__main__":
    main()
