"""SCOTT with a teacher that is made on the spot: asked, learnt from, and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning.blackbox.cot.rationalization import Rationalization
from kdlightning.blackbox.cot.scott import SCOTT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.export import export_student
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

THINGS = ("bird", "stone", "river", "candle", "wolf")
RECORDS = [
    {
        "question": f"Which is number {n}?",
        "choices": [THINGS[n % 5], THINGS[(n + 1 + n % 3) % 5]][:: 1 if n % 2 else -1],
        "answer": THINGS[n % 5],
        "why": f"Number {n} is the {THINGS[n % 5]}.",
        "said": THINGS[n % 5],
    }
    for n in range(30)
]
SPLITS: dict[str, Any] = {"test_split": 4, "val_split": 4, "batch_size": 8, "progress": False, "vocab_size": 320}


def make_model(kind: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind == "t5":
        config = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
        config |= {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
        return transformers_model(architecture="AutoModelForSeq2SeqLM", model_type="t5", config=config)
    config = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def teacher(trainer: Any, tmp_path: Path) -> TransformersGenerator:
    """A teacher trained for a moment on recorded rationales, from the folder of its export."""
    from lightning.pytorch.loggers import CSVLogger

    from kdlightning.callbacks import LatestCheckpoint

    data = BlackBoxData(
        Rationalization(choices_field="choices", rationale_tokens=8),
        RECORDS,
        recorded_fields={"rationale": "why", "answer": "said"},
        store=str(tmp_path / "teacher.sqlite"),
        **SPLITS,
    )
    run = trainer(max_epochs=2, callbacks=[LatestCheckpoint()], logger=CSVLogger(tmp_path, name="", version="teacher"))
    module = BlackBoxDistillation(make_model(seed=1), optimizer=adam)
    run.fit(module, datamodule=data)
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    made = export_student(checkpoint, tmp_path / "export", student=make_model(seed=2))
    model = transformers_model(name=str(made.folder), architecture="AutoModelForCausalLM")
    generator = TransformersGenerator(model, str(made.folder), batch_size=16)
    assert generator.tokenizer.get_vocab() == data.tokenizer.get_vocab()
    return generator


@pytest.mark.parametrize("kind", ["decoder_only", "encoder_decoder"])
def test_from_a_teachers_export_to_predictions(trainer: Any, teacher: Any, tmp_path: Path, kind: Any) -> None:
    method = SCOTT(
        choices_field="choices",
        rationale_tokens=8,
        inference_tokens=8,
        answer_tokens=3,
        student_kind=kind,
        oracle_field="why",
        oracle_answer_field="said",
    )
    data = BlackBoxData(method, RECORDS, generator=teacher, store=str(tmp_path / "scott.sqlite"), **SPLITS)
    module = BlackBoxDistillation(
        make_model("t5" if kind == "encoder_decoder" else "llama"), optimizer=adam, inference_every=0
    )
    run = trainer(max_epochs=2)
    run.fit(module, datamodule=data)
    terms = {name.removesuffix("_epoch") for name in run.callback_metrics}
    assert {"train/loss_factual", "train/loss_counterfactual"} <= terms
    (tested,) = run.test(module, datamodule=data, verbose=False)
    names = ["acc", "perturbed_acc", "drop", "oracle_acc", "perturbed_oracle_acc", "oracle_drop"]
    assert {f"test/{name}" for name in names} <= set(tested)
    report = lines(data.report)
    assert [(row["record"], row["sample"]) for row in report] == [(n, s) for n in asked_records(data) for s in (0, 1)]
    wrong = [row for row in report if row["sample"] == 1]
    assert all(row["prediction"] in THINGS and row["prediction"] != row["gold"] for row in wrong)
    rows = lines(tmp_path / "test_predictions.jsonl")
    assert [row["record"] for row in rows] == [problem.number for problem in data.problems["test"]]
    assert set(rows[0]["fed"]) == {"perturbed", "oracle", "perturbed_oracle"}


def asked_records(data: BlackBoxData) -> list[int]:
    return sorted(problem.number for part in ("train", "val") for problem in data.problems[part])


def test_counterfactual_rows_count_the_answer_alone(teacher: Any, tmp_path: Path) -> None:
    method = SCOTT(choices_field="choices", rationale_tokens=8)
    data = BlackBoxData(method, RECORDS, generator=teacher, store=str(tmp_path / "scott.sqlite"), **SPLITS)
    tokenizer, train = data.tokenizer, data.sources.train
    tags = list(method.tag_weights)
    seen = set()
    for pair in train.pairs:
        text = tokenizer.decode([*pair.given, *pair.label])
        tag = tags[pair.tag]
        assert text.startswith(f" [{tag}] ")
        counted = tokenizer.decode(pair.label).removesuffix(tokenizer.eos_token)
        if tag == "factual":
            assert (pair.given, text) == ((), counted + tokenizer.eos_token)
        else:
            assert tokenizer.decode(pair.given).endswith("So the answer is")
            assert counted.strip() in THINGS
        seen.add(tag)
    assert seen == {"factual", "counterfactual"}
