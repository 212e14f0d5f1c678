"""Segmentation in a run: dense responses, dense features, a resume, and the modes that have no form for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlightning import (
    CWD,
    DKD,
    KD,
    MGD,
    ConfigurationError,
    DigitScenes,
    DistillModule,
    FeatureKD,
    ForwardKL,
    FrozenTeacher,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    PearsonKD,
    ResponseLoss,
    Segmentation,
    SegmentationNet,
    SelfDistillation,
)
from kdlightning.losses import kd_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)")


def net(seed: int, **options: Any) -> SegmentationNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SegmentationNet(11, widths=(4, 6), width=4, **options)


def data(**options: Any) -> DigitScenes:
    return DigitScenes(size=16, scenes=24, eval_scenes=8, batch_size=8, seed=3, **options)


def test_kd_compares_the_counted_pixels(trainer: Any) -> None:
    student, teacher = net(0, stride=2), net(1)
    module = OfflineDistillation(student, teacher, response=KD(temperature=2.0), task=Segmentation(11))
    runner = trainer(max_epochs=1, limit_train_batches=1, num_sanity_val_steps=0)
    scenes = data()
    x, target = next(iter(scenes.train_dataloader())).data
    with torch.no_grad():
        ours, theirs = student.train()(x), teacher.eval()(x)
    theirs = torch.nn.functional.interpolate(theirs, size=(8, 8), mode="bilinear", align_corners=False)
    counted = target[:, 1::2, 1::2] != 255
    rows = [logits.movedim(1, -1)[counted] for logits in (ours, theirs)]
    assert 0 < int(counted.sum()) < counted.numel()
    runner.fit(module, datamodule=scenes)
    metrics = runner.callback_metrics
    assert float(metrics["train/loss_kd"]) == pytest.approx(float(kd_loss(*rows, temperature=2.0)), rel=1e-4)
    assert {"val/miou", "val/acc", "val/loss", "val/teacher_miou", "val/agreement", "val/kl"} <= metrics.keys()


def test_losses_with_labels_read_the_pixels_labels(trainer: Any) -> None:
    module = OfflineDistillation(net(0), net(1), response=DKD(), task=Segmentation(11))
    trainer(max_epochs=1).fit(module, datamodule=data())
    assert torch.isfinite(module.trainer.callback_metrics["train/loss_dkd"])


def test_a_batch_without_counted_pixels_teaches_nothing_and_stays_finite(trainer: Any) -> None:
    void = [(torch.randn(1, 16, 16), torch.full((16, 16), 255)) for _ in range(4)]
    module = OfflineDistillation(net(0), net(1), task=Segmentation(11))
    runner = trainer(max_epochs=1)
    runner.fit(module, torch.utils.data.DataLoader(void, batch_size=2))
    assert float(runner.callback_metrics["train/loss"]) == 0


@pytest.mark.parametrize(
    ("loss", "pairs"),
    [
        (CWD(), {"logits": "logits"}),
        (PearsonKD(), {"neck": "neck"}),
        (MGD(mask_ratio=0.5, masks="positions"), {"neck": "neck"}),
    ],
    ids=["cwd", "pearson_kd", "mgd"],
)
def test_dense_feature_losses_train_and_resume(loss: Any, pairs: dict[str, str], fit_until: Any) -> None:
    def run(name: str, stop: int | None = None) -> DistillModule:
        made = lambda: OfflineDistillation(net(0), net(1), response=None, task=Segmentation(11))  # noqa: E731
        return fit_until(name, made, stop=stop, callbacks=[FeatureKD(loss, pairs)], datamodule=data())

    whole = run("whole")
    run("cut", 4)
    resumed = run("cut")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert f"train/loss_{loss.name}" in resumed.trainer.callback_metrics


def test_predictions_have_a_row_an_image(trainer: Any) -> None:
    module = DistillModule(net(0), task=Segmentation(11))
    batches = trainer().predict(module, datamodule=data())
    rows = [row for batch in batches for row in batch]
    assert [row["index"] for row in rows] == list(range(8))
    assert all(row["shape"] == [16, 16] for row in rows)
    assert all(sum(length for _, length in row["prediction"]) == 256 for row in rows)


def test_a_label_map_picks_maps_of_logits() -> None:
    teacher = net(1)
    mapped = FrozenTeacher(teacher, label_map=[3, 0, 10])
    batch = Segmentation(3).batch((torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16).long()))
    assert torch.equal(mapped(batch, None).logits, teacher(batch.inputs)[:, [3, 0, 10]])
    with pytest.raises(ConfigurationError, match="names class 11, and the teacher has 11"):
        FrozenTeacher(teacher, label_map=[11])(batch, None)


class Banked(ResponseLoss):
    reads_fields = frozenset({"index"})


def test_modes_and_responses_of_one_answer_a_sample_are_refused() -> None:
    task = Segmentation(11)
    with pytest.raises(ConfigurationError, match="OnlineDistillation compares one answer a sample, and Segmentation"):
        OnlineDistillation(net(0), [net(1)], task=task)
    with pytest.raises(ConfigurationError, match="SelfDistillation compares one answer a sample"):
        SelfDistillation(net(0), MeanTeacher(), task=task)
    with pytest.raises(ConfigurationError, match="Banked reads index of samples, and Segmentation has an answer for"):
        OfflineDistillation(net(0), net(1), response=Banked(), task=task)
    with pytest.raises(ConfigurationError, match="ForwardKL sums over tokens"):
        OfflineDistillation(net(0), net(1), response=ForwardKL(), task=task)
