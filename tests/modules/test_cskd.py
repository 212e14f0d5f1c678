"""Class-wise self-distillation against a loop written by hand, in double precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import (
    CSKD,
    Classification,
    ConfigurationError,
    Digits,
    FeatureKD,
    FitNet,
    Regression,
    SelfDistillation,
)


def plain_loss(logits: Tensor, partners: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy and the pull towards the partners, sample by sample."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other, label in zip(logits, partners, labels.tolist(), strict=True):
        total = total - (own[label] - own.exp().sum().log())
        p = (other / temperature).exp() / (other / temperature).exp().sum()
        q = (own / temperature).exp() / (own / temperature).exp().sum()
        total = total + temperature**2 * (p * (p / q).log()).sum()
    return total / len(labels)


def batches_of(loader: Any, epochs: int, limit: int | None = None) -> list[list[Any]]:
    read = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        read.append(list(loader)[:limit])
    return read


@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (None, 3)])
def test_a_fit_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, net: Any, noisy_loader: Any, sgd: Any, trainer: Any
) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student).double()
    module = SelfDistillation(student, CSKD(temperature=3.0), task=Classification(5), optimizer=sgd)
    trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    ).fit(module, noisy_loader(partners=True), noisy_loader(shuffle=False))

    optimizer = sgd(twin.parameters())
    for batches in batches_of(noisy_loader(partners=True), 2, limit):
        for number, batch in enumerate(batches):
            logits = twin(batch.data[0].double())
            with torch.no_grad():  # in training mode: batch statistics, and running ones that move again
                partners = twin(batch.partners[0].double())
            (plain_loss(logits, partners, batch.data[1], 3.0) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    ours, theirs = student.state_dict(), twin.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert theirs["stages.0.1.num_batches_tracked"] == 2 * 2 * len(batches)


def test_gradients_are_those_of_the_joint_loss(dense: Any, noisy_loader: Any, trainer: Any) -> None:
    student = dense(0)
    twin = copy.deepcopy(student).double()
    module = SelfDistillation(
        student,
        CSKD(),
        task=Classification(5),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        weights={"cskd": 0.7, "task": 1.3},
    )
    runner = trainer(max_steps=1, precision="64-true")
    runner.fit(module, noisy_loader(partners=True))
    batch = next(iter(noisy_loader(partners=True)))
    logits, partners = (twin(inputs.double()) for inputs in (batch.data[0], batch.partners[0]))
    hard = plain_loss(logits, logits, batch.data[1], 4.0)  # nothing pulls a sample towards itself
    both = plain_loss(logits, partners.detach(), batch.data[1], 4.0)
    loss = 1.3 * hard + 0.7 * (both - hard)
    for after, before, gradient in zip(
        student.parameters(),
        twin.parameters(),
        torch.autograd.grad(loss, list(twin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(before - after, gradient, rtol=1e-8, atol=1e-12)
    shown = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert shown["train/loss_task"] == pytest.approx(float(hard.detach()), rel=1e-6)
    assert shown["train/loss_cskd"] == pytest.approx(float((both - hard).detach()), rel=1e-6)
    assert shown["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    stop: int, accumulate: int, net: Any, noisy_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def run(name: str, at: int | None = None) -> Any:
        loaders = noisy_loader(partners=True), noisy_loader(shuffle=False)
        return fit_until(
            name,
            lambda: SelfDistillation(net(4, 0, dropout=0.3), CSKD(), task=Classification(5)),
            *loaders,
            stop=at,
            accumulate_grad_batches=accumulate,
        )

    whole = run("whole")
    run("cut", stop)
    same_state(whole, run("cut"))


def test_partners_are_not_asked_while_the_term_rests(net: Any, noisy_loader: Any, trainer: Any) -> None:
    passes: list[bool] = []
    student = net(4, 0)
    module = SelfDistillation(student, CSKD(), task=Classification(5), weights={"cskd": 0.0})
    student.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    trainer().fit(module, noisy_loader(partners=True), noisy_loader(shuffle=False))
    assert passes.count(True) == 4
    # Two batches of the sanity check and four of validation.
    assert passes.count(False) == 6
    assert not any(key.startswith("teacher.") for key in module.state_dict()), "the student is not saved twice"


def test_the_student_learns_nothing_through_the_partners(dense: Any, noisy_loader: Any, trainer: Any) -> None:
    student = dense(0)
    answers: list[Tensor] = []
    module = SelfDistillation(student, CSKD(), task=Classification(5))
    student.register_forward_hook(lambda layer, inputs, output: answers.append(output))
    trainer(max_steps=1).fit(module, noisy_loader(partners=True))
    assert [answer.requires_grad for answer in answers] == [True, False]


def test_our_data_module_gives_partners_by_itself(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False)
    module = SelfDistillation(ConvNet(10, widths=(4,)), CSKD(), task=Classification(10))
    runner = trainer()
    runner.fit(module, datamodule=data)
    assert runner.callback_metrics["train/loss_cskd"] > 0


def test_loaders_without_partners_are_refused_with_the_way_out(net: Any, resumable_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), CSKD(), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"CSKD reads another sample .*IndexedViews\(data, partners=True\)"):
        trainer().fit(module, resumable_loader())


def test_mixed_classes_are_refused(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False, mixup=0.5)
    module = SelfDistillation(ConvNet(10, widths=(4,)), CSKD(), task=Classification(10))
    with pytest.raises(ConfigurationError, match="a term reads partners of one class"):
        trainer().fit(module, datamodule=data)


def test_bad_input_is_refused(net: Any, noisy_loader: Any, trainer: Any) -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="CSKD: temperature must be positive"):
            CSKD(temperature)
    with pytest.raises(ConfigurationError, match="CSKD compares samples of one class"):
        SelfDistillation(torch.nn.Linear(4, 1), CSKD(), task=Regression())
    module = SelfDistillation(net(4, 0), CSKD(), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"FeatureKD\(fit_net\) reads tensors inside the teacher, and CSKD"):
        trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(module, noisy_loader(partners=True))


def test_bfloat16_mixed_precision_runs(net: Any, noisy_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), CSKD(), task=Classification(5))
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, noisy_loader(partners=True), noisy_loader(shuffle=False))
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_a_copy_of_the_module_asks_its_own_student(net: Any, noisy_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), CSKD(), task=Classification(5))
    other = copy.deepcopy(module)
    assert other.teacher._student.model is other.student
    before = [p.clone() for p in module.student.parameters()]
    trainer(max_steps=1).fit(other, noisy_loader(partners=True))
    assert all(torch.equal(a, b) for a, b in zip(before, module.student.parameters(), strict=True))
