"""A step of TinyBERT's intermediate stage under the Trainer against the same step written by hand in PyTorch.

    python benchmarks/tinybert_step.py                 # some minutes on an idle core
    python benchmarks/tinybert_step.py --quick         # few short blocks; writes no file

Attention scores, hidden states and embeddings of a BERT of 2 layers learn from one of 4 (those of
`configs/recipes/tinybert.yaml`), and of one of 4 layers from one of 12, of random weights, on random texts of unequal
length. The loop by hand keeps what the layers' linear maps give by hooks, so that fused attention stays on there too,
and leaves padding out of both means; it runs no classifier and computes no other term. Both variants live in one
process and train equal copies, block by block, as in `step_overhead.py`, with the same things on. The ratio is ours /
hand-written, its median over the blocks with a bootstrapped 90 % interval; the bound is 1.05.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from step_overhead import Interleaver, fit, median_interval, ratios
from torch import Tensor, nn

from kdlightning import Classification, LayerKD, OfflineDistillation, TinyBERTAttention, TinyBERTHidden
from kdlightning.data.loader import ResumableLoader
from kdlightning.text.sequences import TokenSequences

RESULTS = Path(__file__).parent / "results" / "tinybert_step.json"
BOUND, WORDS, SAMPLES = 1.05, 4000, 2048


@dataclass(frozen=True)
class Case:
    """Layers, width and heads of student and teacher, and lengths of the texts."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    heads: int
    batch: int
    longest: int


CASES = {
    "small": Case((2, 64), (4, 128), 4, 32, 64),
    "TinyBERT4": Case((4, 312), (12, 768), 12, 4, 32),
}


def encoder(layers: int, width: int, heads: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


class HandLoop:
    """What somebody writes who has no framework."""

    def __init__(self, student: Any, teacher: Any, maps: nn.ModuleDict, heads: int) -> None:
        self.student, self.teacher, self.maps, self.heads = student.bert, teacher.bert, maps, heads
        self.student.train()
        self.teacher.eval().requires_grad_(False)
        self.optimizer = make_optimizer([*student.parameters(), *maps.parameters()])
        self.kept: dict[tuple[str, int, str], Tensor] = {}
        layers = len(self.student.encoder.layer)
        self.block = len(self.teacher.encoder.layer) // layers
        for owner, network, step in (("student", self.student, 1), ("teacher", self.teacher, self.block)):
            for layer in range(layers):
                attention = network.encoder.layer[(layer + 1) * step - 1].attention.self
                for name in ("query", "key"):
                    attention.get_submodule(name).register_forward_hook(self._keep(owner, layer, name))

    def _keep(self, owner: str, layer: int, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.kept[owner, layer, name] = output

        return hook

    def scores(self, owner: str, layer: int) -> Tensor:
        queries, keys = (
            self.kept[owner, layer, name].unflatten(2, (self.heads, -1)).transpose(1, 2) for name in ("query", "key")
        )
        return queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step; gives the loss."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = self.teacher(**inputs, output_hidden_states=True).hidden_states[:: self.block]
        ours = self.student(**inputs, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].float()
        entries = mask[:, None, :, None] * mask[:, None, None, :]
        loss = torch.zeros(())
        for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            squares = (self.maps["hidden" if number else "embedding"](own) - other).square()
            loss = loss + (squares * mask[:, :, None]).sum() / (mask.sum() * squares.shape[2])
        for layer in range(len(ours) - 1):
            squares = (self.scores("student", layer) - self.scores("teacher", layer)).square()
            loss = loss + (squares * entries).sum() / (entries.sum() * self.heads)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


class Texts(Interleaver):
    """Blocks of texts, which both variants see in batches that are padded to their longest one."""

    def __init__(self, hand: HandLoop, data: TokenSequences, *sizes: int) -> None:
        super().__init__(hand, (data.lengths, data.lengths), *sizes)
        self.texts = data

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """As its base, but batches are mappings; in the first step the loop takes over the maps that were built."""
        if batch_idx == 0:
            maps = pl_module.adapters["tiny_bert_hidden"]["teacher"].losses[0].projections
            self.hand.maps.load_state_dict(maps.state_dict())
        if batch_idx < self.warmup:
            self._loss = float(self.hand.step(batch.data))
        elif (batch_idx - self.warmup) % self.steps == 0:
            self._boundary((batch_idx - self.warmup) // self.steps)

    def _run_hand(self) -> None:
        step = self.hand.step
        self.hand.step = lambda rows, _: step(self.texts.load(rows, rows))  # type: ignore[method-assign]
        self.data = (self._order, self._order)
        try:
            super()._run_hand()
        finally:
            self.hand.step = step  # type: ignore[method-assign]


def measure(name: str, blocks: int, steps: int) -> dict[str, Any]:
    """Trains both variants and sums up."""
    case = CASES[name]
    pl.seed_everything(0, verbose=False)
    student, teacher = (encoder(*size, case.heads, seed) for seed, size in enumerate((case.student, case.teacher)))
    lengths = torch.randint(case.longest // 4, case.longest + 1, (SAMPLES,)).tolist()
    ids = [torch.randint(5, WORDS, (length,)).tolist() for length in lengths]
    data = TokenSequences({"input_ids": ids}, torch.randint(2, (SAMPLES,)))
    width, other = case.student[1], case.teacher[1]
    maps = nn.ModuleDict({kind: nn.Linear(width, other, bias=False) for kind in ("hidden", "embedding")})
    hand = HandLoop(copy.deepcopy(student), copy.deepcopy(teacher), maps, case.heads)
    watch = Texts(hand, data, case.batch, blocks, steps, 5)
    rows = torch.arange((watch.last_step + 1) * case.batch) % SAMPLES
    loader = ResumableLoader(data.select(rows), batch_size=case.batch, shuffle=True)
    validation = ResumableLoader(data.select(rows[: case.batch]), batch_size=case.batch, shuffle=False)
    module = OfflineDistillation(
        student,
        teacher=teacher,
        task=Classification(2),
        response=None,
        weights={"task": 0.0},
        optimizer=make_optimizer,
    )
    fit(module, watch, [LayerKD(TinyBERTAttention()), LayerKD(TinyBERTHidden())], loader, validation)
    for by_hand, ours in watch.losses:
        assert abs(by_hand - ours) <= 1e-4 * abs(by_hand), f"{name}: losses {by_hand} by hand and {ours} ours"
    shares = {kind: [1 / ratio for ratio in ratios(getattr(watch, kind))] for kind in ("wall", "cpu")}
    found = {
        kind: dict(zip(("median", "low", "high"), median_interval(values), strict=True))
        for kind, values in shares.items()
    }
    times = {who: 1e3 * statistics.median(values) / steps for who, values in watch.wall.items()}
    return {
        "case": name,
        "milliseconds": times,
        "ratio": found["wall"],
        "ratio_of_cpu_time": found["cpu"],
        "bound": BOUND,
        "holds": found["wall"]["low"] <= BOUND,
        "first_loss": dict(zip(("hand", "ours"), watch.losses[0], strict=True)),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row a case."""
    lines = ["| case | by hand, ms | ours, ms | ratio (90 %) | of CPU time (90 %) | bound | holds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for each in results:
        times = each["milliseconds"]
        wall, cpu = (
            f"{part['median']:.3f} ({part['low']:.3f}–{part['high']:.3f})"
            for part in (each["ratio"], each["ratio_of_cpu_time"])
        )
        holds = "yes" if each["holds"] else "no"
        lines.append(
            f"| {each['case']} | {times['hand']:.1f} | {times['ours']:.1f} | {wall} | {cpu} | {each['bound']} "
            f"| {holds} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short blocks, no file")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="all by default")
    parser.add_argument("--blocks", type=int, default=None, help="blocks of each variant (20; 4 if quick)")
    parser.add_argument("--steps", type=int, default=None, help="steps in a block (10; 5 if quick)")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads; its own choice by default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    blocks, steps = options.blocks or (4 if options.quick else 20), options.steps or (5 if options.quick else 10)
    results = [measure(name, blocks, steps) for name in options.cases]
    print(table(results))
    if not options.quick and set(options.cases) == set(CASES):
        machine = {"torch": torch.__version__, "lightning": version("lightning"), "processor": platform.machine()}
        report = {**machine, "threads": torch.get_num_threads(), "steps_per_block": steps, "results": results}
        RESULTS.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
