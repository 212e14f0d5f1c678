"""Two processes on CPU train every mode; each rank reports what it holds. Started by test_distributed.py."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdlightning as kd
from kdlightning.data.loader import ResumableLoader
from kdlightning.modules import base

warnings.filterwarnings("ignore")
for _name in ("lightning.pytorch", "lightning.fabric", "lightning"):
    logging.getLogger(_name).setLevel(logging.ERROR)
torch.set_num_threads(1)
HINT = {"stages.0": "stages.0"}


def net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kd.ConvNet(5, widths=(width, 2 * width))


def dense(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6 + seed), nn.Tanh(), nn.Linear(6 + seed, 5))


def language(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return kd.transformers_model(
        architecture="AutoModelForCausalLM",
        model_type="llama",
        config={"vocab_size": 23, "num_key_value_heads": 1, **sizes, **ends},
    )


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(22, 1, 8, 8, generator=generator), torch.randint(5, (22,), generator=generator))


def texts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for number in range(16):
        ids = torch.randint(3, 23, (10,), generator=generator)
        attention = (torch.arange(10) < 5 + number % 6).long()
        rows.append(
            {"input_ids": ids * attention, "attention_mask": attention, "labels": ids.masked_fill(attention == 0, -100)}
        )
    return rows


def setting(mode: str) -> tuple[Any, list[Any], Any]:
    task = kd.Classification(5)
    if mode == "offline":
        module: Any = kd.OfflineDistillation(net(4, 0), net(6, 1), task=task)
        return module, [kd.FeatureKD(kd.FitNet(), HINT)], images()
    if mode == "features_only":  # the end of the student is read by nobody, and one term rests for a while
        module = kd.OfflineDistillation(net(4, 0), net(6, 1), task=task, response=None, weights={"task": 0.0})
        late = kd.FeatureKD(kd.FitNet(), HINT, weight=kd.LinearSchedule(0, 1, begin=0.5, until=1.0), name="late")
        return module, [kd.FeatureKD(kd.AT(), HINT), late], images()
    if mode == "online":
        module = kd.OnlineDistillation(net(4, 0), [net(5, 1), net(6, 2)], task=task)
        return module, [kd.FeatureKD(kd.FitNet(), HINT)], images()
    if mode == "dml_sequential":  # without batch norms, whose statistics are each rank's own
        networks = [dense(seed) for seed in range(3)]
        return (
            kd.OnlineDistillation(
                networks[0],
                networks[1:],
                task=task,
                strategy=kd.DML(sequential=True),
                optimizer=lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
            ),
            [],
            images(),
        )
    if mode == "kdcl_general":
        strategy = kd.KDCL("general", own_views=False)
        return kd.OnlineDistillation(dense(0), [dense(5)], task=task, strategy=strategy), [], images()
    if mode == "pskd":
        return kd.SelfDistillation(net(4, 0), kd.PSKD(), task=task), [], images()
    if mode == "mean_teacher":
        module = kd.SelfDistillation(net(4, 0), kd.MeanTeacher(0.5), task=task)
        return module, [kd.FeatureKD(kd.FitNet(), HINT)], images()
    if mode in ("byot", "uskd"):
        exits = kd.BYOT(["stages.0"]) if mode == "byot" else kd.USKD("stages.0")
        module = kd.SelfDistillation(net(4, 0), exits, task=task)
        hints = [kd.FeatureKD(kd.FitNet(), {"features": "stages.0"})] if mode == "byot" else []
        return module, hints, images()
    if mode in ("byot_alone", "hint_alone", "labels_alone"):  # all but one term rest for a while
        later = kd.LinearSchedule(0, 1, begin=0.5, until=1.0)
        alone = {"byot_alone": "byot", "hint_alone": "byot_hint", "labels_alone": "task"}[mode]
        weights = {name: later for name in ("task", "exits", "byot", "byot_hint") if name != alone}
        return kd.SelfDistillation(net(4, 0), kd.BYOT(["stages.0"]), task=task, weights=weights), [], images()
    if mode == "dlb":
        return kd.SelfDistillation(net(4, 0), kd.DLB(), task=task), [], kd.IndexedViews(images(), 3, views=2)
    if mode == "causal_lm":
        module = kd.OfflineDistillation(
            language(0), language(1), task=kd.CausalLM(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5)
        )
        return (  # noqa: E501
            module,
            [kd.FeatureKD(kd.FitNet(relu=False), {"hidden_states.1": "hidden_states.1"}, weight=0.0)],
            texts(),
        )
    if mode == "on_policy":
        module = kd.OnPolicyDistillation(language(0), language(1), task=kd.CausalLM())
        module.generator = kd.StudentSampler(max_new_tokens=4)
        return module, [kd.FeatureKD(kd.FitNet(relu=False), {"hidden_states.1": "hidden_states.1"})], texts()
    if mode == "memories":
        module = kd.OfflineDistillation(net(4, 0), net(6, 1), task=task, weights={"crd": 0.1})
        losses = kd.CRD(dimensions=4, negatives=8), kd.QueueSoftmax(size=22)
        return module, [kd.RelationKD(loss, {"pre_logits": "pre_logits"}) for loss in losses], images()
    raise ValueError(mode)


def digest(module: nn.Module) -> str:
    parameters = sorted((name, p.detach().numpy().tobytes()) for name, p in module.named_parameters())
    return hashlib.sha256(b"".join(name.encode() + value for name, value in parameters)).hexdigest()


class Toss(L.Callback):
    """Notes which steps are on the student's own text, which rows of the table of answers are kept, and how many
    samples a step shows."""

    def __init__(self) -> None:
        self.tosses: list[bool] = []
        self.rows: list[int] = []
        self.shown: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        if isinstance(pl_module.teacher, kd.DLB):
            self.shown.append(sum(part.size for part in pl_module.shown(pl_module.task.batch(batch))))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if hasattr(pl_module, "writes_itself"):
            self.tosses.append(pl_module.writes_itself())
        if isinstance(pl_module.teacher, kd.PSKD):
            self.rows.append(int(pl_module.teacher.written.sum()))


def run(mode: str, folder: Path, processes: int, resume: bool = False) -> dict[str, Any]:
    os.environ.pop("PL_GLOBAL_SEED", None)  # the ranks must agree without anybody's help
    clock = 11 + int(os.environ.get("LOCAL_RANK", 0))  # and no two of them read the same time
    base.time = SimpleNamespace(time_ns=lambda: clock)  # type: ignore[assignment]
    module, callbacks, data = setting(mode)
    teacher = getattr(module.teacher, "network", None) if isinstance(module.teacher, kd.FrozenTeacher) else None
    before = copy.deepcopy(teacher.state_dict()) if teacher is not None else {}
    toss = Toss()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=3 if resume else 2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[*callbacks, kd.LatestCheckpoint(dirpath=str(folder / f"{mode}-{processes}")), toss],
    )
    path = folder / f"{mode}-{processes}" / "last.ckpt"
    size = 4 // processes
    loaders = [ResumableLoader(data, size, shuffle, seed=3) for shuffle in (True, False)]
    trainer.fit(module, *loaders, ckpt_path=str(path) if resume else None)
    report = {
        "digest": digest(module),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "teacher": all(torch.equal(before[k], v) for k, v in teacher.state_dict().items()) if teacher else True,
        "tosses": toss.tosses,
        "rows": toss.rows,
        "shown": toss.shown,
        "first": [float(v) for v in next(iter(module.student.parameters())).detach().flatten()[:6]],
    }
    if isinstance(module.teacher, kd.PSKD):
        report["table"] = hashlib.sha256(module.teacher.previous.numpy().tobytes()).hexdigest()
        report["seen"] = int(module.teacher.seen.sum())
    if isinstance(module.teacher, kd.DLB):
        report["last"] = {k: v.flatten().tolist() for k, v in module.teacher.get_extra_state().items()}
    if mode == "kdcl_general":
        report["shares"] = module.strategy.shares.tolist()
    if mode == "memories":
        memories = {
            k: v for k, v in module.adapters.state_dict().items() if "embedding" not in k and "adapters" not in k
        }
        report["memories"] = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in memories.items()}
        rows = [v for k, v in memories.items() if k.endswith(("bank", "queue"))]
        report["unit_rows"] = [int(((v.norm(dim=1) - 1).abs() < 1e-5).sum()) for v in rows]
    if trainer.is_global_zero:
        torch.save(module.student.state_dict(), folder / f"{mode}-{processes}.pt")
    return report


if __name__ == "__main__":
    target, chosen = Path(sys.argv[1]), sys.argv[2].split(",")
    reports = {}
    for each in chosen:
        reports[each] = run(each, target, 2)
        if each in ("pskd", "dlb"):
            reports[f"{each}_resumed"] = run(each, target, 2, resume=True)
    rank = torch.distributed.get_rank()
    (target / f"rank{rank}.json").write_text(json.dumps(reports))
