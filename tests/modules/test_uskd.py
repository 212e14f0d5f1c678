"""Universal self-knowledge distillation against a loop written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import (
    USKD,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    LatestCheckpoint,
    LinearSchedule,
    MultiLabel,
    SelfDistillation,
    timm_model,
)

WEIGHTS = {"task": 1.0, "uskd": 0.5, "uskd_others": 0.2, "uskd_weak": 0.3}


def plain_terms(networks: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The four terms, sample by sample."""
    student = networks["student"]
    inside = student.stages[0](x)
    logits = student.fc(student.stages[1](inside).mean((2, 3)))
    weak = networks["exit1"].fc(inside.mean((2, 3)))
    found = {name: torch.zeros((), dtype=x.dtype) for name in WEIGHTS}
    probabilities = [row.exp() / row.exp().sum() for row in logits]
    square = sum(float(p[label].detach()) ** 2 for p, label in zip(probabilities, y, strict=True)) / len(y)
    for p, row, other, label in zip(probabilities, logits, weak, y.tolist(), strict=True):
        w = other.exp() / other.exp().sum()
        found["task"] = found["task"] - p[label].log()
        found["uskd"] = found["uskd"] - (1 + float(p[label].detach()) ** 2 - square) * p[label].log()
        score = (p / (1 - p[label]) + w / (1 - w[label])).tolist()
        shares = [1 / (1 + sum(one > own for one in score)) for own in score]
        rest = sum(row[c].exp() for c in range(len(row)) if c != label)
        for c in range(len(row)):
            smooth = 0.8 * (c == label) + 0.2 / len(row)
            found["uskd_weak"] = found["uskd_weak"] - smooth * w[c].log()
            if c != label:
                share = shares[c] / (sum(shares) - shares[label])
                found["uskd_others"] = found["uskd_others"] - share * (row[c].exp() / rest).log()
    return {name: value / len(y) for name, value in found.items()}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(("limit", "accumulate"), [(None, 1), (2, 1), (None, 3)])
def test_a_fit_equals_a_loop_by_hand(
    limit: int | None, accumulate: int, net: Any, noisy_loader: Any, sgd: Any, trainer: Any, copy_at_start: Any
) -> None:
    start = copy_at_start
    module = SelfDistillation(
        net(4, 0), USKD("stages.0", smoothing=0.2), task=Classification(5), optimizer=sgd, weights=dict(WEIGHTS)
    )
    runner = trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
        callbacks=[start],
    )
    runner.fit(module, noisy_loader(), noisy_loader(shuffle=False))

    networks = nn.ModuleDict(start.networks)
    optimizer, loader = sgd(networks.parameters()), noisy_loader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for number, batch in enumerate(batches):
            terms = plain_terms(networks, batch.data[0].double(), batch.data[1])
            (sum(WEIGHTS[name] * value for name, value in terms.items()) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    for name, network in module.networks.items():
        ours, theirs = network.state_dict(), networks[name].state_dict()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-11, msg=f"{name}.{key}")
    shown = {name: float(value) for name, value in runner.callback_metrics.items()}
    for name, value in terms.items():
        assert shown[f"train/loss_{name}"] == pytest.approx(float(value.detach()), rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    accumulate: int, net: Any, noisy_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def run(name: str, stop: int | None = None) -> Any:
        return fit_until(
            name,
            lambda: SelfDistillation(net(4, 0, dropout=0.3), USKD("stages.0"), task=Classification(5)),
            *(noisy_loader(), noisy_loader(shuffle=False)),
            stop=stop,
            accumulate_grad_batches=accumulate,
        )

    whole = run("whole")
    run("cut", 1)
    run("cut", 2)
    same_state(whole, run("cut"))


def test_the_weak_head_is_scored_and_saved(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    module = SelfDistillation(net(4, 0), USKD("stages.0"), task=Classification(5))
    runner = trainer(callbacks=[LatestCheckpoint(dirpath=str(tmp_path))])
    runner.fit(module, loader(), loader())
    scores = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    assert "val/acc_exit1" in scores
    assert "val/acc_ensemble" not in scores
    loaded = SelfDistillation.load_from_checkpoint(
        tmp_path / "last.ckpt", student=net(4, 9), teacher=USKD("stages.0"), task=Classification(5)
    )
    (found,) = trainer().validate(loaded, loader(), verbose=False)
    assert found == pytest.approx(scores)


def test_callbacks_stand_between_the_weak_head_and_the_student(net: Any, loader: Any, trainer: Any) -> None:
    module = SelfDistillation(net(4, 0), USKD("stages.0"), task=Classification(5))
    runner = trainer(callbacks=[FeatureKD(FitNet(), {"pre_logits": "pre_logits"}, weight=2.0)])
    runner.fit(module, loader())
    shown = {name.removeprefix("train/loss"): float(v) for name, v in runner.callback_metrics.items()}
    total = shown["_task"] + shown["_uskd"] + 0.1 * shown["_uskd_others"] + 0.005 * shown["_uskd_weak"]
    assert shown[""] == pytest.approx(total + 2 * shown["_fit_net_exit1"], rel=1e-5)


@pytest.mark.parametrize("resting", [["uskd_weak"], ["uskd", "uskd_others"], ["uskd", "uskd_others", "uskd_weak"]])
def test_terms_may_rest_for_a_while(resting: list[str], net: Any, loader: Any, trainer: Any) -> None:
    weights = {name: LinearSchedule(0, 1, begin=0.5, until=1.0) for name in resting}
    module = SelfDistillation(net(4, 0), USKD("stages.0"), task=Classification(5), weights=weights)
    runner = trainer(max_epochs=2, precision="bf16-mixed")
    runner.fit(module, loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert set(resting) <= set(module._last_terms)


def test_tokens(trainer: Any) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 16, "num_heads": 2}
    student = timm_model("vit_tiny_patch16_224", num_classes=5, options=sizes)
    data = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 5), 4)
    module = SelfDistillation(student, USKD("blocks.1"), task=Classification(5))
    runner = trainer()
    runner.fit(module, data, data)
    assert module.networks["exit1"].fc.in_features == 16
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_soft_targets_are_refused(net: Any, samples: Any, trainer: Any) -> None:
    x, y = samples.tensors
    data = DataLoader(TensorDataset(x, nn.functional.one_hot(y, 5).float()), 8)
    module = SelfDistillation(net(4, 0), USKD("stages.0"), task=Classification(5))
    with pytest.raises(ConfigurationError, match="USKD needs one class number a sample"):
        trainer().fit(module, data)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigurationError, match="USKD: smoothing must be at least 0 and below 1"):
        USKD("stages.0", smoothing)


def test_other_tasks_are_refused(net: Any) -> None:
    with pytest.raises(ConfigurationError, match="USKD needs a task with one class a sample"):
        SelfDistillation(net(4, 0), USKD("stages.0"), task=MultiLabel(5))
