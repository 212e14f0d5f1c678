"""Every method × every knowledge callback on tiny networks; shared by test_matrix.py and, run as a script, by the two
processes that it starts."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import kdlightning as kd
from kdlightning.data.loader import ResumableLoader

METHODS = ("labels", "kd", "dkd", "dml_2", "dml_3", "pskd", "mean_teacher", "forward_kl", "gkd")
CALLBACKS = ("none", "fit_net", "attention_transfer", "rkd", "sp")
RESPONSES = {
    "dist": kd.DIST,
    "nkd": kd.NKD,
    "wsld": kd.WSLD,
    "hard_label_kd": kd.HardLabelKD,
    "ctkd": kd.CTKD,
}
"""Further responses, each without a callback and with one."""
FURTHER = {
    "nst": kd.NST,
    "vid": kd.VID,
    "cwd": kd.CWD,
    "pearson_kd": kd.PearsonKD,
    "mgd": kd.MGD,
    "review_kd": kd.ReviewKD,
    "srrl": kd.SRRL,
    "catkd": kd.CATKD,
    "pkt": kd.PKT,
    "cc": kd.CC,
    "fsp": kd.FSP,
    "crd": lambda: kd.CRD(dimensions=4),
    "queue_softmax": lambda: kd.QueueSoftmax(size=8),
}
"""Further losses on taps, each with KD."""
SELF = {
    "cskd": (kd.CSKD, {"partners": True}),
    "dlb": (kd.DLB, {"views": 2}),
    "data_distortion": (kd.DataDistortion, {"views": 2}),
    "teacher_free": (kd.TeacherFree, {}),
}
"""Self-teachers that are no networks, with what they read of the data."""
BRANCHES = {
    "one": lambda: kd.ONE("stages.0", temperature=2.0),
    "clilr": lambda: kd.CLILR("stages.0", branches=3),
    "okddip": lambda: kd.OKDDip("stages.0", factor=2),
}
"""Online strategies on branches of one trunk."""
PEERS = {
    "dml_sequential": lambda: kd.DML(sequential=True),
    "kdcl_linear": lambda: kd.KDCL("linear"),
    "kdcl_general": lambda: kd.KDCL("general", own_views=False),
    "joint_training": lambda: kd.JointTraining(),
}
"""Strategies of three networks, each with every callback."""
EXITS = {"byot": lambda: kd.BYOT(["stages.0"]), "uskd": lambda: kd.USKD("stages.0")}
"""Self-teachers that attach exits, which callbacks read."""
LANGUAGE = ("forward_kl", "gkd")
WITHOUT_TAPS = ("labels", "pskd", *SELF)
"""Methods whose teacher is no network: a knowledge callback is refused."""


def net(width: int, seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return kd.ConvNet(5, widths=(width, 2 * width), dropout=dropout)


def language(width: int, seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return kd.transformers_model(
        architecture="AutoModelForCausalLM",
        model_type="llama",
        config={"vocab_size": 23, "num_key_value_heads": 1, "attention_dropout": dropout, **sizes, **ends},
    )


class Noisy(Dataset):
    """Augmented images: the noise is drawn from torch's generator."""

    def __init__(self, count: int = 22) -> None:
        generator = torch.Generator().manual_seed(7)
        images, labels = torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 5
        self.samples = TensorDataset(images, labels)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image, label = self.samples[number]
        return image + 0.3 * torch.randn(image.shape), label


def texts(count: int = 22, length: int = 10) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for number in range(count):
        ids = torch.randint(3, 23, (length,), generator=generator)
        attention = (torch.arange(length) < 5 + number % 6).long()
        labels = ids.masked_fill(attention == 0, -100)
        rows.append({"input_ids": ids * attention, "attention_mask": attention, "labels": labels})
    return rows


def setting(method: str, callback: str) -> tuple[kd.DistillModule, list[Any], Any]:
    """Module, callbacks and data, as a fresh process would make them."""
    options: dict[str, Any] = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2)}
    if method in LANGUAGE:
        task: Any = kd.CausalLM()
        student, teacher = language(8, 0, dropout=0.1), language(16, 1)
        module: kd.DistillModule = (
            kd.OfflineDistillation(student, teacher, task=task, **options)
            if method == "forward_kl"
            else kd.OnPolicyDistillation(
                student, teacher, task=task, generator=kd.StudentSampler(max_new_tokens=4), **options
            )
        )
        return module, knowledge(callback, "hidden_states.1", "hidden_states.2"), texts()
    task, student = kd.Classification(5), net(4, 0, dropout=0.3)
    if method == "labels":
        module = kd.DistillModule(student, task=task, **options)
    elif method in ("kd", "dkd", *RESPONSES):
        response = {"kd": kd.KD, "dkd": kd.DKD, **RESPONSES}[method]()
        module = kd.OfflineDistillation(student, net(6, 1), task=task, response=response, **options)
    elif method in ("dml_2", "dml_3"):
        peers = [net(5 + number, 1 + number) for number in range(int(method[-1]) - 1)]
        module = kd.OnlineDistillation(student, peers, task=task, **options)
    elif method in (*BRANCHES, "okddip_networks"):
        peers = [net(5 + number, 1 + number) for number in range(2)] if method == "okddip_networks" else None
        strategy = kd.OKDDip(factor=2) if peers else BRANCHES[method]()
        module = kd.OnlineDistillation(student, peers, task=task, strategy=strategy, **options)
        return module, knowledge(callback, "stages.1", "pre_logits"), Noisy()
    elif method in PEERS:
        strategy = PEERS[method]()
        module = kd.OnlineDistillation(student, [net(5, 1), net(6, 2)], task=task, strategy=strategy, **options)
        views = kd.IndexedViews(Noisy(), 3, views=strategy.views)
        return module, knowledge(callback, "stages.0", "pre_logits"), views
    elif method in EXITS:
        module = kd.SelfDistillation(student, EXITS[method](), task=task, **options)
        return module, knowledge(callback, "pre_logits", "pre_logits"), Noisy()
    elif method in SELF:
        make, reads = SELF[method]
        module = kd.SelfDistillation(student, make(), task=task, **options)
        return module, knowledge(callback, "stages.0", "pre_logits"), kd.IndexedViews(Noisy(), 3, **reads)
    else:
        teacher_: Any = kd.PSKD() if method == "pskd" else kd.MeanTeacher(0.6)
        module = kd.SelfDistillation(student, teacher_, task=task, **options)
    return module, knowledge(callback, "stages.0", "pre_logits"), Noisy()


def knowledge(callback: str, feature: str, relation: str) -> list[Any]:
    """The callback of a name, on taps that both networks have."""
    if callback == "none":
        return []
    if callback in FURTHER:
        loss = FURTHER[callback]()
        deep = {"stages.1": "stages.1"}
        pairs = {"stages.0": "stages.0", **deep} if loss.joint else deep
        return [(kd.FeatureKD if isinstance(loss, kd.FeatureLoss) else kd.RelationKD)(loss, pairs)]
    if callback in ("fit_net", "attention_transfer"):
        loss = kd.FitNet(relu=False) if callback == "fit_net" else kd.AT()
        return [kd.FeatureKD(loss, {feature: feature})]
    return [kd.RelationKD(kd.RKD() if callback == "rkd" else kd.SP(), {relation: relation})]


def pairs_of() -> list[tuple[str, str]]:
    """All products."""
    found = [(m, c) for m in METHODS for c in (CALLBACKS if m not in WITHOUT_TAPS else ("none",))]
    found += [(method, "none") for method in SELF]
    found += [(method, callback) for method in EXITS for callback in ("none", "fit_net", "rkd")]
    found += [(method, callback) for method in PEERS for callback in CALLBACKS]
    found += [
        (method, callback) for method in (*BRANCHES, "okddip_networks") for callback in ("none", "fit_net", "rkd")
    ]
    found += [(method, callback) for method in RESPONSES for callback in ("none", "fit_net")]
    return found + [("kd", callback) for callback in FURTHER]


def loaders(data: Any, batch_size: int) -> list[ResumableLoader]:
    """Training and validation."""
    return [ResumableLoader(data, batch_size, shuffle=shuffle, seed=3) for shuffle in (True, False)]


def digest(tensors: dict[str, Tensor]) -> str:
    """Names a state, bit for bit."""
    parts = (name.encode() + value.detach().cpu().contiguous().numpy().tobytes() for name, value in tensors.items())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def train_on_two(method: str, callback: str) -> dict[str, Any]:
    """What this rank holds after two epochs on two processes."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # the ranks must agree without anybody's help
    module, callbacks, data = setting(method, callback)
    teacher = getattr(module.teacher, "network", None) if isinstance(module.teacher, kd.FrozenTeacher) else None
    before = digest(copy.deepcopy(teacher.state_dict())) if teacher is not None else ""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, *loaders(data, 4))
    return {
        "parameters": digest(dict(module.named_parameters())),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
        "untouched": teacher is None or digest(teacher.state_dict()) == before,
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for _name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(_name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    reports = {f"{_method} {_callback}": train_on_two(_method, _callback) for _method, _callback in pairs_of()}
    rank = torch.distributed.get_rank()
    Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(reports))
