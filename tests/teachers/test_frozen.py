"""A frozen teacher is bit for bit what it was, and nobody sees it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import (
    AT,
    Classification,
    ConfigurationError,
    ConvNet,
    FeatureKD,
    FrozenTeacher,
    OfflineDistillation,
)
from kdlightning.data.batch import Batch
from kdlightning.data.loader import ResumableLoader


def net(width: int, **options: Any) -> nn.Module:
    model = ConvNet(5, widths=(width, 2 * width), **options)
    with torch.no_grad():  # running statistics that differ from any batch's
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("batch_stats", [False, True])
def test_no_training_changes_it(batch_stats: bool, samples: Any, trainer: Any) -> None:
    teacher = net(6, dropout=0.5)
    before = copy.deepcopy(teacher.state_dict())
    module = OfflineDistillation(net(4), FrozenTeacher(teacher, batch_stats=batch_stats), task=Classification(5))
    callbacks = [FeatureKD(AT(), {"stages.0": "stages.0"})]
    trainer(max_epochs=2, callbacks=callbacks).fit(module, DataLoader(samples, 8), DataLoader(samples, 8))
    module.train()
    module.teacher.train()
    trainer().fit(module, DataLoader(samples, 8))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def test_a_teacher_that_somebody_switched_back_answers_in_evaluation_mode(samples: Any) -> None:
    network = net(6, dropout=0.5)
    teacher = FrozenTeacher(network)
    expected = network(samples.tensors[0])
    before = copy.deepcopy(network.state_dict())
    network.stages.train()  # only a part of it
    network.dropout.train()
    assert torch.equal(teacher(Batch(samples.tensors[0]), None).logits, expected)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_module_tree_does_not_have_it(samples: Any) -> None:
    network = net(6)
    module = OfflineDistillation(net(4), network, task=Classification(5))
    assert not {id(p) for p in network.parameters()} & {id(p) for p in module.parameters()}
    assert not any(name.startswith("teacher") for name in module.state_dict())
    assert copy.deepcopy(module).teacher.network is network


def test_averages_of_the_module_leave_it_alone(samples: Any, trainer: Any) -> None:
    """Lightning's own averaging callback copies the module and copies it back at the end."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    network = net(6)
    before = copy.deepcopy(network.state_dict())
    module = OfflineDistillation(net(4), network, task=Classification(5))
    trainer(max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5)]).fit(module, DataLoader(samples, 8))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_moves_follow() -> None:
    network = net(6)
    module = OfflineDistillation(net(4), FrozenTeacher(network, label_map=[1, 0, 2, 3, 4]), task=Classification(5))
    module.double()
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    module.to("meta")
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_autocast_reaches_it(samples: Any) -> None:
    teacher = FrozenTeacher(net(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher(Batch(samples.tensors[0]), None).logits.dtype == torch.bfloat16


def test_batch_statistics_are_those_of_training_mode(samples: Any) -> None:
    network = net(6)
    twin = copy.deepcopy(network).train()
    x = samples.tensors[0]
    answer = FrozenTeacher(network, batch_stats=True)(Batch(x), None)
    assert torch.equal(answer.logits, twin(x))
    assert not torch.equal(answer.logits, FrozenTeacher(network)(Batch(x), None).logits)


def test_its_scores_are_measured_with_its_own_statistics(samples: Any, trainer: Any) -> None:
    scores, network = [], net(6)
    for batch_stats in (False, True):
        module = OfflineDistillation(net(4), FrozenTeacher(network, batch_stats=batch_stats), task=Classification(5))
        runner = trainer()
        runner.fit(module, DataLoader(samples, 8), DataLoader(samples, 8))
        scores.append(float(runner.callback_metrics["val/teacher_loss"]))
    assert scores[0] == scores[1]


def test_label_map_picks_the_teachers_classes(samples: Any, trainer: Any) -> None:
    wide = ConvNet(9)
    x = samples.tensors[0]
    mapping = [8, 0, 3, 4, 1]
    answer = FrozenTeacher(wide, label_map=mapping)(Batch(x), None)
    assert torch.equal(answer.logits, wide.eval()(x)[:, mapping])
    module = OfflineDistillation(net(4), FrozenTeacher(wide, label_map=mapping), task=Classification(5))
    trainer().fit(module, DataLoader(samples, 8), DataLoader(samples, 8))


@pytest.mark.parametrize("mapping", [[0, 1, 2, 3, 9], [0, -1, 2, 3, 4], []])
def test_label_map_out_of_range_is_refused(mapping: list[int], samples: Any, trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match="label_map"):
        FrozenTeacher(ConvNet(9), label_map=mapping)(Batch(samples.tensors[0]), None)


def test_images_are_normalised_its_own_way() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4, 3))
    ours, theirs = ([0.5, 0.4], [0.2, 0.3]), ([0.1, 0.0], [0.7, 1.0])
    teacher = FrozenTeacher(network, student_normalization=ours, teacher_normalization=theirs)
    raw = torch.rand(3, 2, 2, 2)

    def normalised(x: Tensor, pair: Any) -> Tensor:
        mean, std = (torch.tensor(part).view(1, 2, 1, 1) for part in pair)
        return (x - mean) / std

    answer = teacher(Batch(normalised(raw, ours)), None)
    assert torch.allclose(answer.logits, network(normalised(raw, theirs)), atol=1e-6)
    with pytest.raises(ConfigurationError, match="together"):
        FrozenTeacher(network, student_normalization=ours)


def test_its_own_inputs_come_first() -> None:
    network = nn.Linear(2, 3)
    ours, theirs = torch.randn(4, 5), torch.randn(4, 2)
    answer = FrozenTeacher(network)(Batch(ours, teacher_inputs=theirs), None)
    assert torch.equal(answer.logits, network(theirs))


def test_weights_with_other_key_names(tmp_path: Path, samples: Any) -> None:
    trained, x = net(6), samples.tensors[0]
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "teacher.pt")
    with pytest.raises(ConfigurationError, match="key_map"):
        FrozenTeacher(ConvNet(5, widths=(6, 12)), str(tmp_path / "teacher.pt"))
    teacher = FrozenTeacher(ConvNet(5, widths=(6, 12)), str(tmp_path / "teacher.pt"), key_map={"module.": ""})
    assert torch.equal(teacher(Batch(x), None).logits, trained.eval()(x))
    with pytest.raises(ConfigurationError, match="shape"):
        FrozenTeacher(ConvNet(5, widths=(5, 12)), str(tmp_path / "teacher.pt"), key_map={"module.": ""})
    with pytest.raises(ConfigurationError, match="no teacher checkpoint at"):
        FrozenTeacher(ConvNet(5), str(tmp_path / "techer.pt"))


def test_checkpoint_of_a_distillation_run_becomes_a_teacher(tmp_path: Path, samples: Any, trainer: Any) -> None:
    from kdlightning import DistillModule, LatestCheckpoint

    module = DistillModule(net(6), task=Classification(5))
    trainer(callbacks=[LatestCheckpoint(dirpath=str(tmp_path))]).fit(module, DataLoader(samples, 8))
    teacher = FrozenTeacher(ConvNet(5, widths=(6, 12)), str(tmp_path / "last.ckpt"))
    x = samples.tensors[0]
    assert torch.equal(teacher(Batch(x), None).logits, module.student.eval()(x))


# -- what is measured of it ----------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def direct(network: nn.Module, samples: Any) -> float:
    x, y = samples.tensors
    return float((network.eval()(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("numbered", [True, False])
def test_accuracy_is_measured_once_and_is_the_direct_one(numbered: bool, samples: Any, trainer: Any) -> None:
    import lightning as L

    scores: list[float] = []

    class Read(L.Callback):
        def on_validation_end(self, trainer: Any, _: Any) -> None:
            if not trainer.sanity_checking:
                scores.append(float(trainer.callback_metrics["val/teacher_acc"]))

    counting = Counting(net(6))
    module = OfflineDistillation(net(4), counting, task=Classification(5))
    val = ResumableLoader(samples, 8, False) if numbered else DataLoader(samples, 8)
    trainer(max_epochs=3, callbacks=[Read()]).fit(module, DataLoader(samples, 8), val)
    assert scores == pytest.approx([direct(counting.inner, samples)] * 3)
    # Three training epochs of three batches, two sanity batches, and one validation pass (three if samples have no
    # numbers by which answers could be kept).
    assert counting.calls == 9 + 2 + (3 if numbered else 9)


def test_agreement_and_kl_are_the_direct_ones_in_every_epoch(samples: Any, trainer: Any) -> None:
    import lightning as L

    worst: list[float] = []

    class Read(L.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                return
            x, _ = samples.tensors
            ours, theirs = pl_module.student(x), pl_module.teacher.network(x)
            kl = nn.functional.kl_div(
                ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
            )
            agreement = (ours.argmax(1) == theirs.argmax(1)).float().mean()
            worst.append(abs(float(trainer.callback_metrics["val/kl"] - kl)))
            worst.append(abs(float(trainer.callback_metrics["val/agreement"] - agreement)))

    module = OfflineDistillation(net(4), net(6), task=Classification(5))
    trainer(max_epochs=3, callbacks=[Read()]).fit(module, DataLoader(samples, 8), ResumableLoader(samples, 8, False))
    assert len(worst) == 6
    assert max(worst) < 1e-5


def test_other_validation_data_are_measured_anew(samples: Any, trainer: Any) -> None:
    other = TensorDataset(torch.randn(17, 1, 8, 8), torch.randint(5, (17,)))
    teacher = net(6)
    module = OfflineDistillation(net(4), teacher, task=Classification(5))
    for data in (samples, other):
        runner = trainer()
        runner.fit(module, DataLoader(samples, 8), ResumableLoader(data, 8, False))
        assert float(runner.callback_metrics["val/teacher_acc"]) == pytest.approx(direct(teacher, data))
        ours = module.student.eval()(data.tensors[0]).argmax(1)
        module.train()
        agreement = (ours == teacher(data.tensors[0]).argmax(1)).float().mean()
        assert float(runner.callback_metrics["val/agreement"]) == pytest.approx(float(agreement))
    for data in (other, samples):
        score = trainer().validate(module, ResumableLoader(data, 8, False), verbose=False)[0]
        assert score["val/teacher_acc"] == pytest.approx(direct(teacher, data))
        score = trainer().test(module, ResumableLoader(data, 8, False), verbose=False)[0]
        assert score["test/teacher_acc"] == pytest.approx(direct(teacher, data))


def test_too_many_logits_are_not_kept() -> None:
    from kdlightning.modules.memory import LogitMemory

    memory = LogitMemory(limit=4 * 5 * 10)
    for start in range(0, 12, 4):
        memory.add(torch.arange(start, start + 4), torch.ones(4, 5))
    memory.finish()
    assert memory.look_up(torch.arange(3)) is None
    memory = LogitMemory(limit=4 * 5 * 12)
    logits = torch.randn(12, 5)
    for start in range(0, 12, 4):
        memory.add(torch.arange(start, start + 4), logits[start : start + 4])
    assert memory.look_up(torch.tensor([3, 1])) is None
    memory.finish()
    assert torch.equal(memory.look_up(torch.tensor([3, 1])), logits[[3, 1]])
    assert memory.look_up(torch.tensor([3, 12])) is None


def test_it_stops_early_when_only_shallow_taps_are_read(samples: Any, trainer: Any) -> None:
    from kdlightning import timm_model

    teacher = timm_model("resnet18", num_classes=5, in_chans=1)
    deep: list[bool] = []
    teacher.layer4.register_forward_hook(lambda *_: deep.append(True))
    student = timm_model("test_resnet", num_classes=5, in_chans=1)
    module = OfflineDistillation(student, teacher, task=Classification(5), response=None)
    data = TensorDataset(torch.randn(4, 1, 32, 32), torch.randint(5, (4,)))
    callback = FeatureKD(AT(), {"intermediates.1": "intermediates.1"})
    trainer(callbacks=[callback]).fit(module, DataLoader(data, 2))
    assert len(deep) == 1  # the probe alone


def test_half_precision_runs_leave_it_as_it_was(samples: Any, trainer: Any) -> None:
    network = net(6)
    before = copy.deepcopy(network.state_dict())
    module = OfflineDistillation(net(4), network, task=Classification(5))
    runner = trainer(precision="bf16-true")
    runner.fit(module, DataLoader(samples, 8), DataLoader(samples, 8))
    assert next(module.student.parameters()).dtype == torch.bfloat16
    assert torch.isfinite(runner.callback_metrics["train/loss_kd"])
    after = network.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("shape", [(2, 2, 7), (5, 3), (2, 2, 8, 8)])
def test_normalisation_of_something_else_than_images_is_refused(shape: tuple[int, ...]) -> None:
    teacher = FrozenTeacher(
        nn.Identity(), student_normalization=([0.5] * 3, [0.5] * 3), teacher_normalization=([0.0] * 3, [1.0] * 3)
    )
    with pytest.raises(ConfigurationError, match=r"normalisation is for images \(batch, 3, height, width\)"):
        teacher(Batch(torch.zeros(shape)), None)
