"""Which configurations are compared with which: read from the headers of what ships."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdlightning.commands.shipped import read_header, shipped

FILES = {
    "MNIST1D": "mnist1d.npz",
    "CIFAR10": "cifar10_15k_3k.npz",
    "TextClassification": "sst2",
    "TextCorpus": "lm/tinyshakespeare.txt.gz",
    "BlackBoxData": "svamp_palm_cot/train.jsonl.gz",
    "CounterfactualData": "disco_e2n.jsonl.gz",
}
"""Where the data of a DataModule lie below the folder; others bring theirs along."""
MADE = ("MNIST1D",)
"""DataModules that make data if they are given no file."""


@dataclass(frozen=True)
class Group:
    """Methods that share data and student.

    Attributes:
        name: as it is asked for.
        title: data, student, budget.
        metric: the test metric.
        baseline: the configuration on labels alone.
        methods: those compared with it.
        first: what they begin from: teachers and earlier stages, run with seed 0.
        file: the data below the folder, or None.
        made: whether the data can be made without it.
        seeds: how many.
    """

    name: str
    title: str
    metric: str
    baseline: str
    methods: tuple[str, ...]
    first: tuple[str, ...]
    file: str | None
    made: bool = False
    seeds: int = 3

    def config(self, name: str, work: Path) -> Path:
        """The file of a configuration."""
        return shipped()[name]

    def run_name(self, name: str) -> str:
        """What runs of a configuration are called."""
        return name

    @property
    def teachers(self) -> list[str]:
        """Those of `first` that have a score: networks trained on labels, and no stages such as a paraphraser's."""
        ships = shipped()
        stages = [name for name in self.first if name in ships and not _on_labels(ships[name])]
        return [name for name in self.first if name not in stages]


CIFAR = {
    "offline/response/kd": None,
    "offline/response/dkd": None,
    "offline/response/dist": None,
    "offline/feature/fit_net": 100.0,
    "offline/feature/attention_transfer": 1000.0,
    "offline/feature/review_kd": 1.0,
    "offline/relation/rkd": 1.0,
    "offline/relation/pkt": 30000.0,
    "offline/relation/sp": 3000.0,
    "offline/relation/crd": 0.8,
}
"""The ten most used methods, with the term's weight in the CRD benchmark and its successors."""
PAIRS = {
    "offline/feature/fit_net": {"stages.1": "stages.1"},
    "offline/feature/review_kd": {**{f"stages.{n}": f"stages.{n}.2" for n in range(3)}, "pre_logits": "pre_logits"},
}
"""Taps of the same benchmarks where the shipped ones are other: the middle stage; before the teacher's last ReLUs."""
_PAIR = """
student: {class_path: kdlightning.cifar_model, init_args: {name: resnet8, num_classes: 10}}
teacher:
  class_path: kdlightning.FrozenTeacher
  init_args:
    model: {class_path: kdlightning.cifar_model, init_args: {name: resnet20, num_classes: 10}}
    checkpoint: runs/cifar10_small/teacher/seed0/version_0/checkpoints/last.ckpt
"""
_REST = """
optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4, nesterov: true}}
lr_scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 4}}
"""


@dataclass(frozen=True)
class SmallCifar(Group):
    """The ten most used methods on a pair of CIFAR networks: shipped configurations with other networks and weights."""

    epochs: dict[str, int] = field(default_factory=lambda: {"": 4, "teacher": 12})

    def config(self, name: str, work: Path) -> Path:
        """The file, written anew."""
        path = work / "configs" / f"{self.run_name(name)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# run: {self.run_name(name)}\n{yaml.safe_dump(self._content(name), sort_keys=False)}")
        return path

    def run_name(self, name: str) -> str:
        """`cifar10_small/kd`."""
        return f"cifar10_small/{name.rsplit('/', 1)[-1]}"

    def _content(self, name: str) -> dict[str, Any]:
        pair, rest = yaml.safe_load(_PAIR), yaml.safe_load(_REST)
        epochs = self.epochs["teacher" if name == "teacher" else ""]
        rest["lr_scheduler"]["init_args"]["T_max"] = epochs
        task = {"class_path": "Classification", "init_args": {"num_classes": 10}}
        content: dict[str, Any] = {
            "model": {"class_path": "DistillModule", "init_args": {"student": pair["student"], "task": task, **rest}},
            "data": {"class_path": "CIFAR10", "init_args": {"batch_size": 64}},
            "trainer": {"max_epochs": epochs, "log_every_n_steps": 50, "check_val_every_n_epoch": 2},
        }
        if name == "teacher":
            content["model"]["init_args"]["student"] = pair["teacher"]["init_args"]["model"]
        elif name != "alone":
            shipped_ = copy.deepcopy(yaml.safe_load(shipped()[name].read_text()))
            model = content["model"]
            model["class_path"] = shipped_["model"]["class_path"]
            model["init_args"]["teacher"] = pair["teacher"]
            for key in ("response", "weights"):
                if key in shipped_["model"]["init_args"]:
                    model["init_args"][key] = shipped_["model"]["init_args"][key]
            callbacks = shipped_["trainer"].get("callbacks", [])
            for callback in callbacks:
                callback["init_args"]["weight"] = CIFAR[name]
                callback["init_args"]["pairs"] = PAIRS.get(name, callback["init_args"]["pairs"])
            content["trainer"]["callbacks"] = callbacks
        return content


def groups() -> dict[str, Group]:
    """All groups: one for each baseline that a method's header names, and the pair of CIFAR networks."""
    found: dict[str, list[str]] = {}
    for name, path in shipped().items():
        header = read_header(path)
        if "baseline" in header:
            found.setdefault(header["baseline"], []).append(name)
    result = {baseline.rsplit("/", 1)[-1]: _group(baseline, methods) for baseline, methods in found.items()}
    small = SmallCifar(
        "cifar10_small",
        "CIFAR-10, 13,500 images, ResNet-20 → ResNet-8 of the CIFAR literature, 4 epochs (the teacher 12)",
        *("acc", "alone", tuple(name for name in CIFAR if name in shipped()), ("teacher",), FILES["CIFAR10"]),
    )
    return {**result, small.name: small}


def _group(baseline: str, methods: list[str]) -> Group:
    header = read_header(shipped()[baseline])
    content = yaml.safe_load(shipped()[baseline].read_text())
    data = content["data"]["class_path"].rsplit(".", 1)[-1]
    first: list[str] = []
    for name in (baseline, *methods):
        _begin_from(name, first)
    return Group(
        baseline.rsplit("/", 1)[-1],
        header["budget"],
        header.get("metric", "acc"),
        baseline,
        tuple(methods),
        tuple(first),
        FILES.get(data),
        data in MADE,
        int(header.get("seeds", 3)),
    )


def _on_labels(path: Path) -> bool:
    return read_header(path).get("class_path", "").endswith(".DistillModule")


def _begin_from(name: str, first: list[str]) -> None:
    """Adds what a configuration reads of others' runs, before it."""
    for needed in re.findall(r"runs/([\w/]+?)/seed0/", shipped()[name].read_text()):
        if needed not in first:
            _begin_from(needed, first)
            first.append(needed)
