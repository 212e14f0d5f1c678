"""A student is trained on a teacher's text, and judged by generating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from kdlightning.blackbox.cot.fine_tune_cot import FineTuneCoT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.callbacks import LatestCheckpoint
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation
from kdlightning.modules.loading import load_student
from kdlightning.tasks import CausalLM, Seq2SeqLM

FIELDS = {"rationale": "why", "answer": "said"}


def make_student(**options: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    } | options
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config)


@pytest.fixture
def data(sums: Callable[[int], list], tmp_path: Path) -> Callable[..., BlackBoxData]:
    """Makes data of 30 sums: 4 for test, 6 for validation."""

    def make(**options: Any) -> BlackBoxData:
        options = {
            "method": FineTuneCoT(inference_tokens=12),
            "path": sums(30),
            "recorded_fields": FIELDS,
            "store": str(tmp_path / "text.sqlite"),
            "test_split": 4,
            "val_split": 6,
            "vocab_size": 300,
            "batch_size": 4,
            "eval_batch_size": 3,
            "progress": False,
        } | options
        return BlackBoxData(**options)

    return make


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_lowers_the_loss_and_the_protocol_runs(trainer: Any, data: Any, tmp_path: Path) -> None:
    student, source = make_student(), data()
    (before,) = trainer().validate(BlackBoxDistillation(student), datamodule=source, verbose=False)
    module = BlackBoxDistillation(student, optimizer=adam)
    run = trainer(max_epochs=3)
    run.fit(module, datamodule=source)
    (after,) = run.validate(module, datamodule=source, verbose=False)
    assert after["val/loss"] < 0.75 * before["val/loss"]
    assert 0.0 <= after["val/acc"] <= 1.0
    (tested,) = run.test(module, datamodule=source, verbose=False)
    assert set(tested) == {"test/acc"}
    rows = lines(tmp_path / "test_predictions.jsonl")
    assert [row["record"] for row in rows] == [problem.number for problem in source.problems["test"]]
    assert tested["test/acc"] == pytest.approx(sum(row["correct"] for row in rows) / 4)
    assert {"record", "question", "text", "prediction", "gold", "correct"} == set(rows[0])


def test_a_student_that_knows_the_answer_scores_one(trainer: Any, data: Any, monkeypatch: Any) -> None:
    source = data()

    def told(self: Any, requests: list[Request]) -> list[Any]:
        from kdlightning.generation.base import Answer, Completion

        gold = {f"{p.question} ###": p.gold for part in source.problems.values() for p in part}
        return [Answer(r, {0: Completion(f" It is so. --> {gold[r.text]}")}) for r in requests]

    monkeypatch.setattr(TransformersGenerator, "generate", told)
    module = BlackBoxDistillation(make_student())
    run = trainer()
    assert run.validate(module, datamodule=source, verbose=False)[0]["val/acc"] == 1.0
    assert run.test(module, datamodule=source, verbose=False)[0]["test/acc"] == 1.0


def test_the_loss_is_that_of_the_label_tokens(trainer: Any, data: Any) -> None:
    source = data(eval_batch_size=6)
    student = make_student()
    (found,) = trainer().validate(BlackBoxDistillation(student, inference_every=0), datamodule=source, verbose=False)
    (batch,) = list(source.val_dataloader())
    total, count = 0.0, 0
    for pair in source.sources.val.pairs:
        if pair.label:
            with torch.no_grad():
                logits = student(torch.tensor([pair.prompt + pair.label])).logits[0]
            start = len(pair.prompt) - 1
            log_probs = logits[start:-1].log_softmax(-1)
            total -= float(log_probs.gather(1, torch.tensor(pair.label)[:, None]).sum())
            count += len(pair.label)
    assert found["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert "val/acc" not in found
    assert int((batch.data["labels"] != -100).sum()) == count


def test_the_protocol_runs_as_often_as_it_is_told(trainer: Any, data: Any, monkeypatch: Any) -> None:
    asked: list[tuple[int, int]] = []
    infer = BlackBoxDistillation._infer

    def spy(self: Any, *arguments: Any) -> Any:
        predictions = infer(self, *arguments)
        asked.append((self.current_epoch, len(predictions)))
        return predictions

    monkeypatch.setattr(BlackBoxDistillation, "_infer", spy)
    module = BlackBoxDistillation(make_student(), inference_every=2, inference_records=4)
    trainer(max_epochs=4, num_sanity_val_steps=2).fit(module, datamodule=data())
    assert asked == [(1, 3), (1, 1), (3, 3), (3, 1)]


def test_predictions_are_the_protocols(trainer: Any, data: Any) -> None:
    module, source = BlackBoxDistillation(make_student()), data()
    batches = trainer().predict(module, datamodule=source)
    rows = [row for batch in batches for row in batch]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["question"] for row in rows] == [problem.question for problem in source.problems["test"]]


def test_test_predictions_carry_the_checkpoints_name(trainer: Any, data: Any, tmp_path: Path) -> None:
    source = data()
    folder = tmp_path / "run" / "checkpoints"
    run = trainer(callbacks=[LatestCheckpoint(dirpath=str(folder))])
    student = make_student()
    run.fit(BlackBoxDistillation(student, inference_every=0), datamodule=source)
    run.test(
        BlackBoxDistillation(make_student()), datamodule=source, ckpt_path=str(folder / "last.ckpt"), verbose=False
    )
    assert len(lines(tmp_path / "run" / "test_predictions_last.jsonl")) == 4
    again = load_student(folder / "last.ckpt", make_student())
    for one, other in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_trained_student_answers_alone_as_the_protocol_saw_it(trainer: Any, data: Any, tmp_path: Path) -> None:
    module, source = BlackBoxDistillation(make_student(), optimizer=adam, inference_every=0), data()
    run = trainer(max_epochs=2)
    run.fit(module, datamodule=source)
    run.test(module, datamodule=source, verbose=False)
    alone = TransformersGenerator(module.student, source.tokenizer)
    for row in lines(tmp_path / "test_predictions.jsonl"):
        request = Request(f"{row['question']} ###", sampling=Sampling(max_tokens=12))
        assert alone.generate([request])[0].texts == [row["text"]]


def test_the_students_end_token_becomes_the_tokenizers(trainer: Any, data: Any) -> None:
    # A configuration's default end token would mean an ordinary character here.
    module, source = BlackBoxDistillation(make_student(eos_token_id=2), inference_every=0), data()
    trainer().validate(module, datamodule=source, verbose=False)
    end = source.tokenizer.eos_token_id
    assert module.student.generation_config.eos_token_id == module.student.config.eos_token_id == end != 2


def test_the_module_takes_the_method_from_the_data(trainer: Any, data: Any) -> None:
    module, source = BlackBoxDistillation(make_student()), data()
    trainer().validate(module, datamodule=source, verbose=False)
    assert module.method is source.method
    given = BlackBoxDistillation(make_student(), FineTuneCoT(inference_tokens=12))
    trainer().validate(given, datamodule=source, verbose=False)


@pytest.mark.parametrize(
    ("student", "method", "options", "named"),
    [
        ({}, FineTuneCoT(samples=2), {}, "different methods"),
        ({"vocab_size": 200}, None, {}, "200 rows"),
        ({}, None, {"method": FineTuneCoT(student_kind="encoder_decoder")}, "student_kind does not fit"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    trainer: Any, data: Any, student: dict[str, Any], method: Any, options: dict[str, Any], named: str
) -> None:
    module = BlackBoxDistillation(make_student(**student), method)
    with pytest.raises(ConfigurationError, match=named):
        trainer().fit(module, datamodule=data(**options))


def test_wrong_students_and_data_are_refused(trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match="Linear has no generate"):
        BlackBoxDistillation(torch.nn.Linear(1, 1))
    t5 = transformers_model(
        architecture="AutoModelForSeq2SeqLM",
        model_type="t5",
        config={"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    )
    with pytest.raises(ConfigurationError, match="CausalLM is for decoder-only students"):
        BlackBoxDistillation(t5, task=CausalLM())
    with pytest.raises(ConfigurationError, match="Seq2SeqLM for encoder–decoders"):
        BlackBoxDistillation(make_student(), task=Seq2SeqLM())
    with pytest.raises(ConfigurationError, match="inference_every"):
        BlackBoxDistillation(make_student(), inference_every=-1)
    module: LightningModule = BlackBoxDistillation(make_student())
    with pytest.raises(ConfigurationError, match="reads BlackBoxData"):
        trainer().fit(module, train_dataloaders=[{"input_ids": torch.ones(1, 2, dtype=torch.long)}])


def test_real_teacher_text_trains_a_student(trainer: Any, data_folder: Path, tmp_path: Path) -> None:
    source = BlackBoxData(
        FineTuneCoT(inference_tokens=24),
        str(data_folder / "svamp_palm_cot" / "train.jsonl.gz"),
        recorded_fields={"rationale": "llm_rationale", "answer": "llm_answer"},
        store=str(tmp_path / "svamp.sqlite"),
        vocab_size=600,
        test_split=20,
        val_split=40,
        eval_batch_size=20,
        train_limit=160,
        progress=False,
    )
    student = make_student(vocab_size=600)
    silent = BlackBoxDistillation(student, inference_every=0)
    (before,) = trainer().validate(silent, datamodule=source, verbose=False)
    module = BlackBoxDistillation(student, optimizer=adam, inference_every=3)
    run = trainer(max_epochs=3)
    run.fit(module, datamodule=source)
    after = run.callback_metrics
    assert float(after["val/loss"]) < before["val/loss"] - 1.0
    assert "val/acc" in after
    report = lines(source.report)
    assert len(report) == 780
    assert sum(row["kept"] for row in report) == 593 - sum(
        1 for p in source.problems["test"] if p.record["llm_answer"] == p.record["answer"]
    )
    run.test(module, datamodule=source, verbose=False)
    rows = lines(tmp_path / "test_predictions.jsonl")
    assert len(rows) == 20
    assert all(row["gold"] for row in rows)


def test_two_processes_share_one_teachers_text(sums: Callable[[int], list], tmp_path: Path) -> None:
    records = tmp_path / "sums.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in sums(30)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PL_GLOBAL_SEED", None)
    script = Path(__file__).with_name("distributed_script.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(records)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert {"val/loss", "val/acc", "test/acc"} <= set(one["metrics"])
    rows = lines(tmp_path / "test_predictions.jsonl")
    assert len({row["record"] for row in rows}) == len(rows) == 5
