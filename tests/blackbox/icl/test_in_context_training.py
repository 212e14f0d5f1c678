"""A student learns from demonstrations, hard and soft labels, and votes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.icl.in_context_distillation import InContextDistillation
from kdlightning.blackbox.sequences import DrawnSequences
from kdlightning.errors import ConfigurationError
from kdlightning.losses import ReverseKL
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation
from kdlightning.teachers import FrozenTeacher


def make_network(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    } | options
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config)


@pytest.fixture
def data(tasks: Callable[[int], list], tmp_path: Path) -> Callable[..., BlackBoxData]:
    """Makes data of 5 tasks of 20 records, 5 for test and 3 for validation each."""

    def make(method: InContextDistillation | None = None, **options: Any) -> BlackBoxData:
        options = {
            "path": tasks(20),
            "question_field": "prompt",
            "gold_field": "completion",
            "recorded_fields": {"answer": "completion"},
            "store": str(tmp_path / "text.sqlite"),
            "test_split": 0.25,
            "val_split": 0.2,
            "vocab_size": 300,
            "max_length": 96,
            "batch_size": 16,
            "progress": False,
        } | options
        if method is None:
            method = InContextDistillation("multitask", demonstrations=2, votes=3, most_options=5, answer_tokens=4)
        return BlackBoxData(method, **options)

    return make


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-3)


def texts(source: BlackBoxData, epoch: int) -> list[str]:
    """The training texts of an epoch, by sample number."""
    loader = source.train_dataloader()
    loader.sampler.set_epoch(epoch)
    rows = {}
    for batch in loader:
        for number, ids, mask in zip(batch.index, batch.data["input_ids"], batch.data["attention_mask"], strict=True):
            rows[int(number)] = source.tokenizer.decode(ids[mask.bool()])
    return [rows[number] for number in sorted(rows)]


def test_each_epoch_shows_other_demonstrations_and_repeats(data: Callable[..., BlackBoxData]) -> None:
    source = data(seed=3)
    first, second = texts(source, 0), texts(source, 1)
    assert len(first) == 2 * 5 * 12
    assert first[1::2] == second[1::2]  # the texts of the language objective
    assert sum(one != other for one, other in zip(first[::2], second[::2], strict=True)) > 50
    assert [text.rsplit("\n\n\n")[-1] for text in first[::2]] == [text.rsplit("\n\n\n")[-1] for text in second[::2]]
    again = data(seed=3)
    assert texts(again, 0) == first
    assert texts(again, 1) == second
    assert texts(data(seed=4), 0) != first


def test_a_draw_that_is_too_long_loses_its_beginning(data: Callable[..., BlackBoxData]) -> None:
    source = data()
    _ = source.sources
    kept = [(problem, source.kept("val", [problem])) for problem in source.problems["train"]]
    whole, short = (
        DrawnSequences(kept, source.method, "student", source.tokenizer, most).__getitem__ for most in (96, 16)
    )
    for number in range(0, 40, 2):
        random.seed(number)
        long = whole(number)
        random.seed(number)
        cut = short(number)
        assert cut == replace(long, prompt=long.prompt[-(16 - len(long.label)) :])


def test_masks_cover_the_output_or_the_whole_text(data: Callable[..., BlackBoxData]) -> None:
    source = data()
    _ = source.sources
    in_context, language = source.sources.train[0], source.sources.train[1]
    assert (in_context.tag, language.tag) == (0, 1)
    assert language.prompt == ()
    decode = source.tokenizer.decode
    assert decode(in_context.label[:-1]) == source.problems["train"][0].gold
    assert decode(language.label[:-1]) == f"{source.problems['train'][0].question}\n{decode(in_context.label[:-1])}"
    assert in_context.label[-1] == language.label[-1] == source.tokenizer.eos_token_id


def means(student: Any, teacher: Any, batch: Any, number: int) -> tuple[float, float]:
    """Cross-entropy and forward KL a token over one tag's rows, by hand."""
    rows = batch["tags"] == number
    ids, mask, labels = (batch[name][rows] for name in ("input_ids", "attention_mask", "labels"))
    counted = labels[:, 1:] != -100
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, attention_mask=mask).logits[:, :-1][counted] for m in (student, teacher))
    hard = functional.cross_entropy(ours, labels[:, 1:][counted])
    soft = functional.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
    return float(hard), float(soft)


def test_the_loss_is_that_of_the_paper(trainer: Any, data: Callable[..., BlackBoxData], monkeypatch: Any) -> None:
    method = InContextDistillation(
        "multitask", True, demonstrations=2, alpha_start=0.3, alpha_end=0.9, beta_lm=0.5, votes=1, most_options=5
    )
    source = data(method, seed=0)
    student, teacher = make_network(0), make_network(1)
    module = BlackBoxDistillation(student, teacher=FrozenTeacher(teacher), inference_every=0)
    seen: list[tuple[dict[str, float], float]] = []
    combine = BlackBoxDistillation.combine

    def watched(self: Any, terms: Any, step: Any) -> Any:
        loss, values = combine(self, terms, step)
        seen.append(({name: float(value.detach()) for name, value in terms.items()}, float(values["loss"])))
        return loss, values

    monkeypatch.setattr(BlackBoxDistillation, "combine", watched)
    batch = next(iter(source.train_dataloader())).data
    hard, soft = zip(*(means(student, teacher, batch, number) for number in (0, 1)), strict=True)
    run = trainer(max_steps=1, max_epochs=-1, limit_val_batches=0)
    run.fit(module, datamodule=source)
    terms, loss = seen[-1]
    expected = {"icl": hard[0], "soft_icl": soft[0], "lm": hard[1], "soft_lm": soft[1]}
    assert terms == pytest.approx(expected, rel=1e-4)
    assert loss == pytest.approx(0.3 * hard[0] + 0.7 * soft[0] + 0.5 * (hard[1] + soft[1]), rel=1e-4)


def test_weights_of_single_terms_can_be_set(trainer: Any, data: Callable[..., BlackBoxData]) -> None:
    method = InContextDistillation("multitask", True, demonstrations=1, votes=1, most_options=5)
    module = BlackBoxDistillation(
        make_network(), teacher=make_network(1), response=ReverseKL(), weights={"lm": 0.0, "soft_lm": 0.0}
    )
    run = trainer(max_steps=1, max_epochs=-1, limit_val_batches=0)
    run.fit(module, datamodule=data(method))
    assert {name for name in run.callback_metrics if name.startswith("train/")} == {
        "train/loss", "train/loss_icl", "train/loss_soft_icl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("soft", "options", "named"),
    [
        (True, {}, "learns from soft labels"),
        (False, {"teacher": True}, "set up without soft labels"),
        (False, {"response": ReverseKL()}, "give teacher too"),
    ],
)
def test_teacher_and_method_must_agree(
    trainer: Any, data: Callable[..., BlackBoxData], soft: bool, options: dict[str, Any], named: str
) -> None:
    method = InContextDistillation("multitask", soft, demonstrations=1, most_options=5)
    if "teacher" in options:
        options = {"teacher": make_network(1)}
    with pytest.raises(ConfigurationError, match=named):
        trainer(max_steps=1, max_epochs=-1).fit(
            BlackBoxDistillation(make_network(), **options), datamodule=data(method)
        )


def test_from_records_to_predictions(trainer: Any, data: Callable[..., BlackBoxData], tmp_path: Path) -> None:
    source = data(seed=0)
    module = BlackBoxDistillation(make_network(), optimizer=adam, inference_every=3)
    run = trainer(max_epochs=3, logger=False)
    run.fit(module, datamodule=source)
    assert {"val/acc", "val/macro_f1", "val/exact_match", "val/rouge_l", "val/loss"} <= set(run.callback_metrics)
    (tested,) = run.test(module, datamodule=source, verbose=False)
    rows = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 25
    chosen = [row for row in rows if row["chosen"]]
    assert tested["test/acc"] == pytest.approx(sum(row["correct"] for row in chosen) / 20)
    assert {row["task"] for row in rows if not row["chosen"]} == {"after_a"}
    assert all(len(row["votes"]) == 3 for row in rows)
    assert {row["prediction"] for row in chosen if row["task"] == "sign_b"} <= {"yes", "no"}
    report = source.report.read_text().splitlines()
    assert len(report) == 75
    assert all(json.loads(line)["kept"] for line in report)


def test_a_student_of_soft_labels_leaves_its_teacher_out_of_the_checkpoint(
    trainer: Any, data: Callable[..., BlackBoxData], tmp_path: Path
) -> None:
    method = InContextDistillation("multitask", True, demonstrations=1, votes=1, most_options=5, answer_tokens=2)
    teacher = make_network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    module = BlackBoxDistillation(make_network(), teacher=teacher, optimizer=adam, inference_every=0)
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=data(method))
    assert "val/kl" in run.callback_metrics
    run.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("student.") for name in state)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_held_out_family_is_answered_from_what_is_shown(trainer: Any, data: Callable[..., BlackBoxData]) -> None:
    method = InContextDistillation(
        demonstrations=2, votes=2, shots=4, queries=3, test_families=["sign"], most_options=5, answer_tokens=2
    )
    source = data(method, val_split=1)
    module = BlackBoxDistillation(make_network())
    (tested,) = trainer().test(module, datamodule=source, verbose=False)
    assert set(tested) == {"test/acc", "test/most_frequent", "test/macro_f1"}
    rows = trainer().predict(module, datamodule=source)
    assert [row["task"] for part in rows or [] for row in part] == ["sign_a"] * 3 + ["sign_b"] * 3
