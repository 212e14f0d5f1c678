"""Students of sentence encoders and rerankers: short runs from records to an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import kdlightning as kd
from kdlightning.export import export_student

TEXTS = [f"{'where' if n % 2 else 'who'} is number {n} of {n % 5}" for n in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    records = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(tmp_path)


def bert(hidden: int, **options: Any) -> Any:
    sizes = {"hidden_size": hidden, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture = "AutoModelForSequenceClassification" if options else "AutoModel"
    config = {"vocab_size": 80, **sizes, **dropout, **options}
    return kd.transformers_model(architecture=architecture, model_type="bert", config=config)


def groups(folder: str, **options: Any) -> kd.TextGroups:
    made = {
        "query_field": "text",
        "classes_field": "label",
        "vocab_size": 80,
        "val_split": 6,
        "batch_size": 8,
        "seed": 1,
    }
    return kd.TextGroups(folder, **{**made, **options})


def regression(width: int | None = None) -> Any:
    torch.manual_seed(0)
    student, teacher = kd.sentence_encoder(bert(8), width=width), kd.sentence_encoder(bert(12))
    return kd.OfflineDistillation(
        student,
        teacher,
        task=kd.SentenceEmbedding(neighbours=3),
        response=None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    )


def hint() -> kd.FeatureKD:
    return kd.FeatureKD(kd.CosineEmbedding(), {"logits": "logits"})


@pytest.mark.parametrize("width", [12, None])
def test_a_student_comes_closer_to_its_teacher(folder: str, trainer: Any, width: int | None) -> None:
    module = regression(width)
    runner = trainer(max_epochs=6, callbacks=[hint()])
    data = kd.TextClassification(folder, vocab_size=80, val_split=6, batch_size=8, seed=1)
    before = runner.validate(module, datamodule=data, verbose=False)[0]
    runner.fit(module, datamodule=data)
    after = runner.callback_metrics
    assert {"val/cka", "val/knn_acc", "val/teacher_knn_acc"} <= set(after)
    assert "val/loss" not in after
    if width is None:  # a linear map stands between, in training alone
        assert sum(p.numel() for p in module.adapters.parameters()) == 8 * 12 + 12
        assert "val/cosine" not in after
    else:
        assert after["val/cosine"] > before["val/cosine"] + 0.1
        assert not list(module.adapters.parameters())


def test_the_term_and_its_gradient_are_the_loss_written_by_hand(folder: str, trainer: Any) -> None:
    data = kd.TextClassification(folder, vocab_size=80, val_split=6, batch_size=24, seed=1)
    module = regression(12)
    copy = regression(12)
    module._make_optimizer = copy._make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    runner = trainer(max_epochs=1, callbacks=[hint()], num_sanity_val_steps=0, limit_val_batches=0)
    runner.fit(module, datamodule=data)
    batch = next(iter(data.train_dataloader())).data
    batch.pop("labels")
    teacher = copy.teacher.network(**batch).detach()
    value = (1 - functional.cosine_similarity(copy.student(**batch), teacher)).mean()
    value.backward()
    torch.testing.assert_close(runner.callback_metrics["train/loss"], value.detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(module.student.parameters(), copy.student.parameters(), strict=True):
        torch.testing.assert_close(ours.data, theirs.data - theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["similarity", "retrieval", "reranking"])
def test_pairs_and_groups_train_and_are_scored(folder: str, trainer: Any, kind: str) -> None:
    task: Any = {"similarity": kd.SentenceSimilarity, "retrieval": kd.PassageRetrieval, "reranking": kd.Reranking}[
        kind
    ]()
    options: Any = {"similarity": {"score_field": "same"}, "retrieval": {"negatives": 2}, "reranking": {"negatives": 2}}
    data = groups(folder, together=kind == "reranking", **options[kind])
    if kind == "reranking":
        student, teacher, response = bert(8, num_labels=1), bert(12, num_labels=1), kd.MarginMSE()
    else:
        student, teacher = kd.sentence_encoder(bert(8)), kd.sentence_encoder(bert(12))
        response = None if kind == "similarity" else kd.KD(temperature=1.0)
    module = kd.OfflineDistillation(student, teacher, task=task, response=response)
    runner = trainer(max_epochs=2, callbacks=[hint()] if kind == "similarity" else [])
    runner.fit(module, datamodule=data)
    seen = runner.callback_metrics
    assert torch.isfinite(seen["train/loss"])
    name = "spearman" if kind == "similarity" else "mrr"
    assert task.monitor == f"val/{name}"
    assert {f"val/{name}", f"val/teacher_{name}", "val/loss"} <= set(seen)
    assert len(runner.predict(module, dataloaders=data.val_dataloader())[0]) == 6
    if kind == "reranking":
        assert "train/loss_task" not in seen  # Margin-MSE alone, as its paper has it
        module = kd.DistillModule(bert(8, num_labels=1), task=kd.Reranking())
        trainer(max_epochs=1).fit(module, datamodule=data)


def test_a_killed_run_ends_where_the_undisturbed_one_does(folder: str, fit_until: Any) -> None:
    def go(name: str, **options: Any) -> Any:
        data = kd.TextClassification(folder, vocab_size=80, val_split=6, batch_size=8, seed=1)
        return fit_until(name, regression, datamodule=data, callbacks=[hint()], **options)

    whole = go("whole")
    go("broken", stop=4)
    resumed = go("broken")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_student_is_exported_for_sentence_transformers(folder: str, trainer: Any, tmp_path: Path) -> None:
    data = kd.TextClassification(folder, vocab_size=80, val_split=6, batch_size=8, seed=1)
    module = regression(12)
    runner = trainer(callbacks=[hint(), kd.LatestCheckpoint(1, dirpath=str(tmp_path / "kept"))])
    runner.fit(module, datamodule=data)
    batch = next(iter(data.val_dataloader())).data
    batch.pop("labels")
    shapes = {"named": {name: {"shape": [6], "dtype": "int64"} for name in batch}}
    done = export_student(tmp_path / "kept/last.ckpt", tmp_path / "out", inputs=shapes)  # built by its own words
    assert (done.format, done.difference) == ("sentence-transformers", 0)
    assert "sentence_transformers.SentenceTransformer" in done.load_line
    again = kd.sentence_encoder(str(tmp_path / "out")).eval()
    torch.testing.assert_close(again(**batch), module.student.eval()(**batch))
    with pytest.raises(
        kd.ConfigurationError, match="--format transformers: SentenceEncoder is not a transformers model"
    ):
        export_student(tmp_path / "kept/last.ckpt", tmp_path / "other", inputs=shapes, format="transformers")


def test_padding_of_other_texts_changes_no_embedding(folder: str) -> None:
    data = groups(folder, negatives=2)
    network = kd.sentence_encoder(bert(8)).eval()
    task = kd.PassageRetrieval()
    whole = task.batch(data.part("train").load(torch.arange(6), torch.zeros(6)))
    together = network(**whole.inputs).view(6, 4, -1)
    for number in range(6):
        alone = task.batch(data.part("train").load(torch.tensor([number]), torch.zeros(1)))
        torch.testing.assert_close(network(**alone.inputs), together[number], atol=1e-6, rtol=1e-5)


def test_default_response_is_refused_for_embeddings() -> None:
    with pytest.raises(kd.ConfigurationError, match="KD compares probabilities of classes, and SentenceSimilarity"):
        kd.OfflineDistillation(kd.sentence_encoder(bert(8)), kd.sentence_encoder(bert(8)), task=kd.SentenceSimilarity())
