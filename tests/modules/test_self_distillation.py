"""Self-distillation against loops written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlightning import (
    AT,
    PSKD,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    MeanTeacher,
    Regression,
    SelfDistillation,
)


def batches_of(loader: Any, epochs: int, limit: int | None = None) -> list[list[tuple[Any, Any, Any]]]:
    """What the Trainer will see: (x, y, index) of each batch of each epoch."""
    read = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        rows = [(b.data[0], b.data[1], b.index) for b in loader]
        read.append(rows[:limit])
    return read


@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (None, 3)])
def test_pskd_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, net: Any, resumable_loader: Any, sgd: Any, trainer: Any
) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student)
    epochs, alpha = 3, 0.8
    module = SelfDistillation(student, PSKD(alpha=alpha), task=Classification(5), optimizer=sgd)
    trainer(
        max_epochs=epochs,
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
    ).fit(module, resumable_loader())

    optimizer = sgd(twin.parameters())
    past: dict[int, torch.Tensor] = {}
    for epoch, batches in enumerate(batches_of(resumable_loader(), epochs, limit)):
        share = alpha * (epoch + 1) / epochs
        present: dict[int, torch.Tensor] = {}
        for number, (x, y, index) in enumerate(batches):
            logits = twin(x)
            rows = []
            for label, sample in zip(y.tolist(), index.tolist(), strict=True):
                onehot = torch.zeros(5)
                onehot[label] = 1.0
                rows.append((1 - share) * onehot + share * past[sample] if sample in past else onehot)
            loss = -(torch.stack(rows) * logits.log_softmax(1)).sum(1).mean() / accumulate
            loss.backward()
            for sample, p in zip(index.tolist(), logits.detach().softmax(1), strict=True):
                present[sample] = p
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
        past |= present
    for mine, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    seen = set(torch.nonzero(module.teacher.seen).flatten().tolist())
    assert seen == set(past)


def test_pskd_needs_sample_numbers_and_says_so_before_training(net: Any, loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), PSKD(), task=Classification(5))
    with pytest.raises(ConfigurationError, match="IndexedViews"):
        trainer().fit(module, loader())


def test_pskd_says_why_it_has_no_tensors_inside(net: Any, resumable_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), PSKD(), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"FeatureKD\(fit_net\) reads tensors inside the teacher, and PSKD"):
        trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(module, resumable_loader())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_mean_teacher_equals_a_loop_by_hand(
    accumulate: int, net: Any, resumable_loader: Any, sgd: Any, trainer: Any
) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student)
    average = copy.deepcopy(twin)
    epochs, decay = 2, 0.7
    module = SelfDistillation(
        student, MeanTeacher(decay), task=Classification(5), optimizer=sgd, weights={"mean_teacher": 5.0}
    )
    runner = trainer(max_epochs=epochs, accumulate_grad_batches=accumulate)
    runner.fit(module, resumable_loader(), resumable_loader(shuffle=False))

    optimizer = sgd(twin.parameters())
    step = 0
    for batches in batches_of(resumable_loader(), epochs):
        for number, (x, y, _) in enumerate(batches):
            logits = twin(x)
            with torch.no_grad():
                target = average(x).softmax(1)
            loss = F.cross_entropy(logits, y) + 5 * ((logits.softmax(1) - target) ** 2).mean()
            (loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                keep = min(decay, 1 - 1 / (step + 1))
                with torch.no_grad():
                    for mine, new in zip(average.parameters(), twin.parameters(), strict=True):
                        mine.copy_(keep * mine + (1 - keep) * new)
                    for mine, new in zip(average.buffers(), twin.buffers(), strict=True):
                        mine.copy_(new)
    for mine, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    for mine, other in zip(module.teacher.average.parameters(), average.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)

    average.eval()
    x, y = resumable_loader().dataset.dataset.tensors
    accuracy = float((average(x).argmax(1) == y).float().mean())
    assert float(runner.callback_metrics["val/teacher_acc"]) == pytest.approx(accuracy)


def test_mean_teacher_accuracy_is_measured_in_each_epoch(net: Any, loader: Any, trainer: Any) -> None:
    import lightning as L

    seen: list[float] = []

    class Read(L.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                pl_module.teacher.average.eval()
                x, y = loader().dataset.tensors
                direct = float((pl_module.teacher.average(x).argmax(1) == y).float().mean())
                seen.append(float(trainer.callback_metrics["val/teacher_acc"]) - direct)

    module = SelfDistillation(
        net(4, 0), MeanTeacher(0.5), task=Classification(5), optimizer=lambda p: torch.optim.SGD(p, lr=0.3)
    )
    trainer(max_epochs=3, callbacks=[Read()]).fit(module, loader(), loader())
    assert seen == pytest.approx([0.0] * 3, abs=1e-6)


def test_mean_teacher_gives_taps(net: Any, resumable_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), MeanTeacher(0.5), task=Classification(5))
    runner = trainer(
        callbacks=[
            FeatureKD(FitNet(), {"stages.0": "stages.0"}, weight=2.0),
            FeatureKD(AT(), {"stages.1": "stages.1"}, weight=3.0, name="attention"),
        ]
    )
    runner.fit(module, resumable_loader())
    m = {name: float(value) for name, value in runner.callback_metrics.items()}
    total = m["train/loss_task"] + m["train/loss_mean_teacher"]
    total += 2 * m["train/loss_fit_net"] + 3 * m["train/loss_attention"]
    assert m["train/loss"] == pytest.approx(total, rel=1e-5)
    assert m["train/loss_attention"] > 0


def test_mean_teacher_sees_the_second_view(dense: Any, samples: Any, trainer: Any, resumable_loader: Any) -> None:
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, number: int) -> Any:
            x, y = samples[number]
            return x + torch.randn(x.shape), y

    from kdlightning.data.loader import ResumableLoader

    inputs: list[torch.Tensor] = []
    student = dense(0)
    module = SelfDistillation(student, MeanTeacher(0.5), task=Classification(5))
    module.teacher.average.register_forward_pre_hook(lambda m, i: inputs.append(i[0]))
    loader = ResumableLoader(Noisy(), 8, True, seed=3, views=2)
    first = next(iter(ResumableLoader(Noisy(), 8, True, seed=3, views=2)))
    trainer(max_steps=1).fit(module, loader)
    assert torch.equal(inputs[0], first.views[0][0])
    assert not torch.equal(inputs[0], first.data[0])


def test_average_is_not_in_the_optimizer(net: Any, resumable_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), MeanTeacher(), task=Classification(5))
    runner = trainer()
    runner.fit(module, resumable_loader())
    given = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert given == {id(p) for p in module.student.parameters()}


@pytest.mark.parametrize("teacher", [MeanTeacher, PSKD])
def test_tasks_without_class_probabilities_are_refused(teacher: Any) -> None:
    with pytest.raises(ConfigurationError, match=teacher.__name__):
        SelfDistillation(nn.Linear(4, 1), teacher(), task=Regression())


def test_a_trained_network_is_no_self_teacher(net: Any) -> None:
    with pytest.raises(ConfigurationError, match="OfflineDistillation"):
        SelfDistillation(net(4, 0), net(6, 1), task=Classification(5))


@pytest.mark.parametrize("teacher", [MeanTeacher, PSKD])
def test_bfloat16_mixed_precision_runs(teacher: Any, net: Any, resumable_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), teacher(), task=Classification(5))
    runner = trainer(precision="bf16-mixed", max_epochs=2)
    runner.fit(module, resumable_loader(), resumable_loader(shuffle=False))
    assert torch.isfinite(runner.callback_metrics["train/loss"])
