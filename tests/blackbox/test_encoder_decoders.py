"""Encoder–decoder students, and answers that begin as they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdlightning.blackbox.base import Example, Outcome, Problem
from kdlightning.blackbox.cot.fine_tune_cot import FineTuneCoT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.sequences import PaddedBatch, tokenize
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation
from kdlightning.modules.loading import load_student
from kdlightning.tasks import Seq2SeqLM


def make_student(**options: Any) -> Any:
    torch.manual_seed(0)
    config = {"vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    return transformers_model(architecture="AutoModelForSeq2SeqLM", model_type="t5", config=config | options)


class Given(FineTuneCoT):
    """The rationale is fed, and only the answer is learnt."""

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        answer = f" {self.gold(problem)}"
        return {
            "student": [Example(problem.number, problem.question, answer, given=o.texts["rationale"]) for o in outcomes]
        }


def make_data(records: list[dict[str, Any]], folder: Path, kind: type[FineTuneCoT] = FineTuneCoT) -> BlackBoxData:
    return BlackBoxData(
        kind(inference_tokens=12, student_kind="encoder_decoder"),
        records,
        recorded_fields={"rationale": "why", "answer": "said"},
        store=str(folder / "text.sqlite"),
        test_split=4,
        val_split=6,
        vocab_size=300,
        batch_size=4,
        eval_batch_size=3,
        progress=False,
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3)


def test_an_encoder_decoder_is_trained_tested_and_loaded_again(
    trainer: Any, sums: Callable[[int], list], tmp_path: Path
) -> None:
    source, student = make_data(sums(30), tmp_path), make_student()
    module = BlackBoxDistillation(student, optimizer=adam, inference_every=3)
    assert type(module.task) is Seq2SeqLM
    (before,) = trainer().validate(module, datamodule=source, verbose=False)
    run = trainer(max_epochs=3)
    run.fit(module, datamodule=source)
    assert run.callback_metrics["val/loss"] < 0.75 * before["val/loss"]
    assert "val/acc" in run.callback_metrics
    (tested,) = run.test(module, datamodule=source, verbose=False)
    assert set(tested) == {"test/acc"}
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = load_student(tmp_path / "run.ckpt", make_student())
    for one, other in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_decoder_is_fed_what_is_given_and_learns_the_rest(
    trainer: Any, sums: Callable[[int], list], tmp_path: Path
) -> None:
    source, student = make_data(sums(30), tmp_path, Given), make_student(dropout_rate=0.0)
    module = BlackBoxDistillation(student, inference_every=0)
    (found,) = trainer().validate(module, datamodule=source, verbose=False)
    total, count = 0.0, 0
    for pair in source.sources.val.pairs:
        if not pair.label:
            continue
        fed = [*pair.given, *pair.label]
        inputs = torch.tensor([[student.config.decoder_start_token_id, *fed[:-1]]])
        with torch.no_grad():
            logits = student(input_ids=torch.tensor([pair.prompt]), decoder_input_ids=inputs).logits[0]
        log_probs = logits[len(pair.given) :].log_softmax(-1)
        total -= float(log_probs.gather(1, torch.tensor(pair.label)[:, None]).sum())
        count += len(pair.label)
    assert abs(found["val/loss"] - total / count) < 1e-4


def test_a_batch_keeps_fed_and_counted_labels_apart(sums: Callable[[int], list], tmp_path: Path) -> None:
    tokenizer = make_data(sums(30), tmp_path).tokenizer
    example = Example(0, "Why?", " Yes.", given="So it is.")
    pair = tokenize(example, tokenizer, encoder_decoder=True)
    batch = PaddedBatch(0, encoder_decoder=True)([pair])
    assert batch["input_ids"][0].tolist() == list(pair.prompt)
    assert tokenizer.decode(batch["fed_labels"][0][:-1]) == "So it is. Yes."
    counted = batch["labels"][0] != -100
    assert tokenizer.decode(batch["labels"][0][counted][:-1]) == " Yes."
    assert torch.equal(batch["labels"][0][counted], batch["fed_labels"][0][counted])
