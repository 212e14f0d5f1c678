"""Data-distortion guided self-distillation against a loop written by hand, in double precision."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import Classification, ConfigurationError, DataDistortion, Digits, Regression, SelfDistillation

WEIGHTS = {"task": 1.2, "data_distortion": 0.7, "data_distortion_mmd": 3.0}


def plain_terms(logits: Tensor, features: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """The three terms of two views, one after the other along the batch, with plain sums."""
    size = len(labels)
    hard = pull = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, [*labels.tolist(), *labels.tolist()], strict=True):
        hard = hard - (row[label] - row.exp().sum().log()) / (2 * size)
    for first, second in zip(logits[:size], logits[size:], strict=True):
        for own, other in ((first, second.detach()), (second, first.detach())):
            p, q = ((z / temperature).exp() / (z / temperature).exp().sum() for z in (other, own))
            pull = pull + temperature**2 * (p * (p / q).log()).sum() / (2 * size)
    mmd = ((features[:size].sum(0) - features[size:].sum(0)) / size).pow(2).sum()
    return {"task": hard, "data_distortion": pull, "data_distortion_mmd": mmd}


def answers(network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and the vectors before the classifier, of both views in one pass."""
    inputs = torch.cat([batch.data[0], batch.views[0][0]]).double()
    features = network.flatten(network.pool(network.stages(inputs)))
    return network.fc(features), features


@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (None, 3)])
def test_a_fit_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, net: Any, noisy_loader: Any, sgd: Any, trainer: Any
) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student).double()
    module = SelfDistillation(
        student, DataDistortion(temperature=2.0), task=Classification(5), optimizer=sgd, weights=WEIGHTS
    )
    runner = trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    )
    runner.fit(module, noisy_loader(views=2), noisy_loader(shuffle=False))

    optimizer, loader = sgd(twin.parameters()), noisy_loader(views=2)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for number, batch in enumerate(batches):
            terms = plain_terms(*answers(twin, batch), batch.data[1], 2.0)
            loss = sum(WEIGHTS[name] * term for name, term in terms.items())
            (loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    ours, theirs = student.state_dict(), twin.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=name)
    for name, term in terms.items():
        shown = float(runner.callback_metrics[f"train/loss_{name}"])
        assert shown == pytest.approx(float(term.detach()), rel=1e-6), name


def test_gradients_are_those_of_the_joint_loss(net: Any, noisy_loader: Any, trainer: Any) -> None:
    student = net(4, 0)
    twin = copy.deepcopy(student).double()
    module = SelfDistillation(
        student, DataDistortion(), task=Classification(5), optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
    )
    trainer(max_steps=1, precision="64-true").fit(module, noisy_loader(views=2))
    batch = next(iter(noisy_loader(views=2)))
    terms = plain_terms(*answers(twin, batch), batch.data[1], 1.0)
    loss = terms["task"] + terms["data_distortion"] + 5e-4 * terms["data_distortion_mmd"]
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for after, before, gradient in zip(student.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(before - after, gradient, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    stop: int, net: Any, noisy_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def run(name: str, at: int | None = None) -> Any:
        return fit_until(
            name,
            lambda: SelfDistillation(net(4, 0, dropout=0.3), DataDistortion(), task=Classification(5)),
            noisy_loader(views=2),
            noisy_loader(shuffle=False),
            stop=at,
        )

    whole = run("whole")
    run("cut", stop)
    same_state(whole, run("cut"))


@pytest.mark.parametrize("resting", ["data_distortion", "data_distortion_mmd"])
def test_each_term_may_rest(resting: str, net: Any, noisy_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), DataDistortion(), task=Classification(5), weights={resting: 0.0})
    runner = trainer(max_steps=1)
    runner.fit(module, noisy_loader(views=2))
    shown = {name for name in runner.callback_metrics if name.startswith("train/loss_data")}
    assert shown == {"train/loss_data_distortion", "train/loss_data_distortion_mmd"} - {f"train/loss_{resting}"}


def test_one_pass_and_one_view_in_validation(net: Any, noisy_loader: Any, trainer: Any) -> None:
    sizes: list[tuple[bool, int]] = []
    student = net(4, 0)
    module = SelfDistillation(student, DataDistortion(), task=Classification(5))
    student.register_forward_pre_hook(lambda layer, inputs: sizes.append((layer.training, len(inputs[0]))))
    runner = trainer(num_sanity_val_steps=0)
    runner.fit(module, noisy_loader(views=2), noisy_loader(shuffle=False))
    assert [size for training, size in sizes if training and size > 4] == [16, 16, 16]
    assert [size for training, size in sizes if not training][-4:] == [8, 8, 8, 2]
    assert "val/acc" in runner.callback_metrics
    # Afterwards it is tested, and predicts, as any other module.
    runner.test(module, noisy_loader(shuffle=False), verbose=False)
    rows = runner.predict(module, noisy_loader(shuffle=False))
    assert len(rows[0]) == 8
    assert module.own_taps("student") == ()


def test_our_data_module_distorts_the_second_view(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False, augment=True)
    module = SelfDistillation(ConvNet(10, widths=(4,)), DataDistortion(), task=Classification(10))
    runner = trainer()
    runner.fit(module, datamodule=data)
    assert runner.callback_metrics["train/loss_data_distortion"] > 0
    assert runner.callback_metrics["train/loss_data_distortion_mmd"] > 0


def test_bad_input_is_refused(net: Any, resumable_loader: Any, trainer: Any, noisy_loader: Any) -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="DataDistortion: temperature must be positive"):
            DataDistortion(temperature)
    with pytest.raises(ConfigurationError, match="DataDistortion compares class probabilities"):
        SelfDistillation(nn.Linear(4, 1), DataDistortion(), task=Regression())
    module = SelfDistillation(net(4, 0), DataDistortion(), task=Classification(5))
    with pytest.raises(ConfigurationError, match="DataDistortion reads 2 views of each sample"):
        trainer().fit(module, resumable_loader())


def test_bfloat16_mixed_precision_runs(net: Any, noisy_loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), DataDistortion(), task=Classification(5))
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, noisy_loader(views=2), noisy_loader(shuffle=False))
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_views_that_do_not_differ_are_mentioned_once(net: Any, samples: Any, noisy_loader: Any, trainer: Any) -> None:
    from kdlightning import IndexedViews, resumable

    def fit(loader: Any) -> list[str]:
        module = SelfDistillation(net(4, 0), DataDistortion(), task=Classification(5))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(max_epochs=2).fit(module, loader)
        return [str(w.message) for w in caught if "DataDistortion" in str(w.message)]

    same = resumable(torch.utils.data.DataLoader(IndexedViews(samples, views=2), 8))
    (message,) = fit(same)
    assert "both views of the first batch are the same" in message
    assert not fit(noisy_loader(views=2))
