"""Encoders on texts of every kind of task, distilled from files that a test writes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    DIST,
    DKD,
    KD,
    MLKD,
    Classification,
    ConfigurationError,
    DistillModule,
    ForwardKL,
    OfflineDistillation,
    OnlineDistillation,
    Regression,
    ResponseLoss,
    TaggedText,
    TextClassification,
    TokenClassification,
)
from kdlightning.losses import kd_loss

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)"),
    pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero"),
]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def net(seed: int, outputs: int, architecture: str, width: int = 8, **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(
        "bert",
        vocab_size=120,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_labels=outputs,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, architecture).from_config(config)


def classifier(seed: int, outputs: int, **options: Any) -> Any:
    return net(seed, outputs, "AutoModelForSequenceClassification", **options)


def tagger(seed: int, **options: Any) -> Any:
    return net(seed, 4, "AutoModelForTokenClassification", **options)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def fast(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


# -- pairs and numbers -------------------------------------------------------------------------------------------------


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentence pairs whose relation, and likeness from 0 to 5, can be told from the second one."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        noun = draw.choice(["cat", "dog", "bird"])
        second, relation, likeness = draw.choice(
            [(f"the {noun} rests", "entailment", 4.5), ("stones fly high", "contradiction", 1.0)]
            + [(f"maybe it is red {noun}", "neutral", 2.5)]
        )
        made.append(
            {
                "premise": f"a {'big ' * draw.randint(0, 5)}{noun} sleeps",
                "hypothesis": second,
                "label": relation,
                "score": likeness,
            }
        )
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate((("train", 160), ("dev", 40), ("test", 20))):
        write(tmp_path / f"{name}.jsonl", pairs(count, seed))
    return tmp_path


@pytest.mark.parametrize("bucketing", [False, True])
def test_pairs_with_a_relation_as_in_mnli(bucketing: bool, folder: Path, trainer: Any) -> None:
    data = TextClassification(
        str(folder),
        text_field=["premise", "hypothesis"],
        vocab_size=60,
        seed=1,
        batch_size=8,
        length_bucketing=bucketing,
    )
    task = Classification(3, metrics=["f1", "matthews"])
    gentle = lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)  # noqa: E731
    networks = (classifier(0, 3, width=16), classifier(1, 3))
    module = OfflineDistillation(*networks, task=task, optimizer=gentle, weights={"task": 1.0, "kd": 0.02})
    runner = trainer(max_epochs=10)
    runner.fit(module, datamodule=data)
    assert float(runner.callback_metrics["val/acc"]) > 0.5, "a third is chance"
    assert {"val/f1", "val/matthews", "val/teacher_matthews", "val/agreement"} <= set(runner.callback_metrics)
    assert task.monitor == "val/acc"


def test_pairs_with_a_number_as_in_sts_b(folder: Path, trainer: Any) -> None:
    data = TextClassification(
        str(folder),
        text_field=["premise", "hypothesis"],
        label_field="score",
        target="number",
        vocab_size=60,
        seed=1,
        batch_size=8,
    )
    task = Regression(metrics=["pearson", "spearman"])
    module = DistillModule(classifier(0, 1), task=task, optimizer=fast)
    runner = trainer(max_epochs=12)
    runner.fit(module, datamodule=data)
    scores = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert scores["val/pearson"] > 0.9
    assert scores["val/spearman"] > 0.8
    assert scores["val/rmse"] < 1
    rows = [row for rows in runner.predict(module, datamodule=data) for row in rows]
    assert len(rows) == 20
    assert all(math.isfinite(row["prediction"]) for row in rows)


# -- tags --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    draw = random.Random(0)
    name = lambda: "".join(draw.choice("abcdefgh") for _ in range(draw.randint(3, 8)))  # noqa: E731
    for part, count in (("train", 96), ("dev", 24)):
        records = []
        for number in range(count):
            words, tags = ["today"] * (number % 4), ["O"] * (number % 4)
            people = [name() for _ in range(draw.randint(1, 2))]
            words += ["mister", *people, "near", name()]
            tags += ["O", "B-PER", *["I-PER"] * (len(people) - 1), "O", "B-LOC"]
            records.append({"words": words, "tags": tags})
        write(tmp_path / f"{part}.jsonl", records)
    return tmp_path


def tags_of(folder: Path, **options: Any) -> TaggedText:
    return TaggedText(str(folder), vocab_size=60, tag_names=TAGS, batch_size=16, seed=1, **options)


def test_kd_compares_the_counted_tokens(tagged: Path, trainer: Any) -> None:
    student, teacher = tagger(0), tagger(1)
    task = TokenClassification(4, TAGS)
    module = OfflineDistillation(student, teacher, response=KD(temperature=2.0), task=task)
    batch = dict(next(iter(tags_of(tagged).train_dataloader())).data)
    labels = batch.pop("labels")
    with torch.no_grad():
        ours, theirs = (network(**batch).logits[labels != -100] for network in (student, teacher.eval()))
    runner = trainer(limit_train_batches=1, num_sanity_val_steps=0)
    runner.fit(module, datamodule=tags_of(tagged))
    metrics = runner.callback_metrics
    assert float(metrics["train/loss_kd"]) == pytest.approx(float(kd_loss(ours, theirs, temperature=2.0)), rel=1e-4)
    expected = torch.nn.functional.cross_entropy(ours, labels[labels != -100])
    assert float(metrics["train/loss_task"]) == pytest.approx(float(expected), rel=1e-4)
    wanted = ("acc", "f1", "entity_f1", "teacher_f1", "agreement", "kl")
    assert {f"val/{name}" for name in wanted} <= set(metrics)


@pytest.mark.parametrize("response", [DKD(), DIST()], ids=["dkd", "dist"])
def test_other_responses_read_the_counted_tokens_too(response: ResponseLoss, tagged: Path, trainer: Any) -> None:
    module = OfflineDistillation(tagger(0), tagger(1), response=response, task=TokenClassification(4))
    runner = trainer(limit_train_batches=3)
    runner.fit(module, datamodule=tags_of(tagged))
    assert torch.isfinite(runner.callback_metrics[f"train/loss_{response.name}"])


def test_it_learns_alone_and_predicts_a_record_a_text(tagged: Path, trainer: Any) -> None:
    module = DistillModule(tagger(0, width=16), task=TokenClassification(4, TAGS), optimizer=fast)
    runner, data = trainer(max_epochs=12), tags_of(tagged, length_bucketing=True)
    runner.fit(module, datamodule=data)
    scores = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert scores["val/entity_f1"] > 0.9
    assert scores["val/f1"] > 0.9
    rows = [row for rows in runner.predict(module, datamodule=data) for row in rows]
    assert len(rows) == 24
    assert all(len(row["prediction"]) == len(row["target"]) == len(row["probability"]) for row in rows)


def test_resumed_run_ends_where_the_undisturbed_one_does(tagged: Path, fit_until: Any) -> None:
    def run(name: str, stop: int | None = None) -> DistillModule:
        make = lambda: OfflineDistillation(tagger(0), tagger(1), task=TokenClassification(4))  # noqa: E731
        return fit_until(name, make, datamodule=tags_of(tagged, length_bucketing=True), stop=stop)

    whole = run("whole").student.state_dict()
    run("cut", stop=8)
    again = run("cut").student.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_what_compares_whole_samples_is_refused(tagged: Path, trainer: Any) -> None:
    task = TokenClassification(4)
    with pytest.raises(ConfigurationError, match="MLKD compares whole .* has an answer for each word: give KD"):
        OfflineDistillation(tagger(0), tagger(1), response=MLKD(), task=task)
    with pytest.raises(ConfigurationError, match="ForwardKL sums over tokens, and TokenClassification has none"):
        OfflineDistillation(tagger(0), tagger(1), response=ForwardKL(), task=task)
    with pytest.raises(ConfigurationError, match="has one for each word: use OfflineDistillation"):
        OnlineDistillation(tagger(0), [tagger(1)], task=task)
    module = DistillModule(tagger(0), task=TokenClassification(4, [*TAGS[:2], "B-LOC", "I-PER"]))
    with pytest.raises(ConfigurationError, match="the task's tags are O, B-PER, B-LOC, I-PER and the data's O, B-PER"):
        trainer().fit(module, datamodule=tags_of(tagged))
