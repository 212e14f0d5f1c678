"""Distillation without labels in a run: no label reaches a term, terms and scores, resume, refusals."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import (
    DKD,
    DML,
    KD,
    PSKD,
    BestCheckpoint,
    ConfigurationError,
    Digits,
    DistillModule,
    FeatureKD,
    FitNet,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    QueueSoftmax,
    RelationKD,
    SelfDistillation,
    Unlabelled,
    timm_model,
    transformers_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)")


def headless(seed: int, width: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def module(response: Any = None, task: Unlabelled | None = None, **options: Any) -> OfflineDistillation:
    student, teacher = headless(0), headless(1, 9)
    return OfflineDistillation(student, teacher, response=response, task=task or Unlabelled(), **options)


def hints() -> list[L.Callback]:
    return [
        FeatureKD(FitNet(relu=False), {"0": "0"}, weight=0.5),
        RelationKD(QueueSoftmax(size=32), {"logits": "logits"}),
    ]


def test_the_loss_is_that_of_the_terms(trainer: Any) -> None:
    run = module()
    runner = trainer(max_epochs=2, callbacks=[*hints(), BestCheckpoint(dirpath=None)])
    runner.fit(run, datamodule=Digits(train_limit=96, val_split=64, batch_size=32))
    found = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert {name for name in found if name.startswith("train/")} == {
        "train/loss",
        "train/loss_fit_net",
        "train/loss_queue_softmax",
    }
    assert found["train/loss"] == pytest.approx(0.5 * found["train/loss_fit_net"] + found["train/loss_queue_softmax"])
    assert {"val/cka", "val/knn_acc", "val/teacher_knn_acc"} <= found.keys()
    assert "val/loss" not in found
    assert 0 < found["val/cka"] <= 1
    best = next(c for c in runner.callbacks if isinstance(c, BestCheckpoint))
    assert best.best_model_score == max(run.trainer.callback_metrics["val/cka"], best.best_model_score)


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_change_nothing_but_the_neighbours_score(labelled: bool, trainer: Any) -> None:
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    run = module()
    run._seed = 1
    data = TensorDataset(x, torch.arange(24) % 3) if labelled else TensorDataset(x)
    runner = trainer(callbacks=hints())
    runner.fit(run, DataLoader(data, 8), DataLoader(data, 8))
    assert ("val/knn_acc" in runner.callback_metrics) == labelled
    torch.manual_seed(0)
    alone = module()
    alone._seed = 1
    trainer(callbacks=hints()).fit(alone, DataLoader(list(x), 8), DataLoader(list(x), 8))
    ours, theirs = run.state_dict(), alone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_scores_are_measured_in_a_test_of_their_own(trainer: Any) -> None:
    (found,) = trainer().test(module(), datamodule=Digits(), verbose=False)
    assert {"test/cka", "test/knn_acc", "test/teacher_knn_acc"} == found.keys()
    same = OfflineDistillation(headless(0), headless(0), response=None, task=Unlabelled())
    (found,) = trainer().test(same, datamodule=Digits(), verbose=False)
    assert found["test/cka"] == pytest.approx(1.0, abs=1e-5)
    assert found["test/knn_acc"] == found["test/teacher_knn_acc"]


def test_predictions_are_embeddings(trainer: Any) -> None:
    run, data = module(), Digits()
    rows = [row for batch in trainer().predict(run, datamodule=data) for row in batch]
    x = torch.stack([data.part("predict")[i][0] for i in (0, 1)])
    with torch.no_grad():
        expected = run.student(x)
    assert torch.allclose(torch.tensor([row["prediction"] for row in rows[:2]]), expected, atol=1e-6)


def test_classifiers_learn_from_each_other_on_images_alone(trainer: Any) -> None:
    student, teacher = headless(0), headless(1)
    run = OfflineDistillation(student, teacher, response=KD(temperature=1.0), task=Unlabelled())
    runner = trainer(limit_train_batches=2)
    runner.fit(run, datamodule=Digits(mixup=1.0))
    found = runner.callback_metrics
    assert "train/loss_task" not in found
    assert float(found["train/loss"]) == pytest.approx(0.9 * float(found["train/loss_kd"]), rel=1e-5)


def test_transformers_and_timm_students_without_a_head(trainer: Any) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = {**sizes, "image_size": 32, "patch_size": 8}
    teacher = transformers_model(architecture="AutoModel", model_type="vit", config=config)
    student = timm_model("test_resnet", num_classes=0)
    run = OfflineDistillation(student, teacher, response=None, task=Unlabelled())
    hint = FeatureKD(FitNet(relu=False), {"intermediates.2": "hidden_states.2"})
    runner = trainer(callbacks=[hint], max_epochs=2)
    images = list(torch.randn(8, 3, 32, 32))
    runner.fit(run, DataLoader(images, 4), DataLoader(images, 4))
    assert 0 <= float(runner.callback_metrics["val/cka"]) <= 1


def test_an_average_of_the_student_can_teach_features(trainer: Any) -> None:
    run = SelfDistillation(headless(0), MeanTeacher(0.5), task=Unlabelled(), weights={"mean_teacher": 0.0})
    runner = trainer(callbacks=[FeatureKD(FitNet(relu=False), {"0": "0"})])
    runner.fit(run, datamodule=Digits(train_limit=64))
    assert float(runner.callback_metrics["val/cka"]) > 0.5


def test_a_resumed_run_ends_where_the_undisturbed_one_ends(fit_until: Any) -> None:
    def run(name: str, stop: int | None = None) -> Any:
        data = Digits(train_limit=96, batch_size=32, seed=5, augment=True, mixup=1.0)
        return fit_until(name, module, stop=stop, callbacks=hints(), datamodule=data)

    whole = run("whole")
    run("cut", 2)
    resumed = run("cut")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_run_without_terms_says_what_to_add(trainer: Any) -> None:
    for run in (module(), DistillModule(headless(0), task=Unlabelled())):
        with pytest.raises(ConfigurationError, match="no term is left: Unlabelled has no loss of its own: add a callb"):
            trainer().fit(run, datamodule=Digits(train_limit=64))


def test_the_task_has_no_weight() -> None:
    with pytest.raises(ConfigurationError, match="Unlabelled has no loss of its own: leave task out of weights"):
        module(weights={"task": 0.1})


def test_losses_and_modes_that_need_labels_refuse(trainer: Any) -> None:
    run = OfflineDistillation(headless(0), headless(1), response=DKD(), task=Unlabelled())
    with pytest.raises(ValueError, match="DKD needs labels, and this batch has none"):
        trainer().fit(run, datamodule=Digits(train_limit=64))
    with pytest.raises(ConfigurationError, match="PSKD needs a task with one class a sample"):
        SelfDistillation(headless(0), PSKD(), task=Unlabelled())
    with pytest.raises(ConfigurationError, match="DML compares class probabilities"):
        OnlineDistillation(headless(0), [headless(1)], strategy=DML(), task=Unlabelled())


def test_a_plateau_is_one_of_the_alignment(trainer: Any) -> None:
    def plateau(mode: str) -> Any:
        return lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode)

    trainer(callbacks=hints()).fit(module(lr_scheduler=plateau("max")), datamodule=Digits(train_limit=64))
    with pytest.raises(ConfigurationError, match="val/cka is better the higher, and mode is 'min'"):
        trainer(callbacks=hints()).fit(module(lr_scheduler=plateau("min")), datamodule=Digits(train_limit=64))
