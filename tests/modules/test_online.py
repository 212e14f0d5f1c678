"""Online distillation: all networks learn at once, each as if it had an optimizer of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlightning import (
    AT,
    DML,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    MultiLabel,
    OnlineDistillation,
)


def joint_losses(networks: list[nn.Module], x: torch.Tensor, y: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    """Each network's own loss with the others' probabilities as constants, written with plain sums."""
    logits = [net(x) for net in networks]
    losses = []
    for i, mine in enumerate(logits):
        loss = F.cross_entropy(mine, y)
        for j, other in enumerate(logits):
            if j != i:
                p = (other.detach() / temperature).softmax(1)
                q = (mine / temperature).softmax(1)
                pull = (p * (p / q).log()).sum() / len(y) * temperature**2
                loss = loss + pull / (len(logits) - 1)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_are_those_of_each_networks_own_loss(
    count: int, temperature: float, dense: Any, samples: Any, trainer: Any
) -> None:
    from torch.utils.data import DataLoader

    networks = [dense(seed, width=4 + seed).double() for seed in range(count)]
    oracles = copy.deepcopy(networks)
    x, y = samples.tensors
    data = DataLoader(list(zip(x.double(), y, strict=True)), 26)
    module = OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        strategy=DML(temperature),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    # The task's loss is computed in float32 at most places; the oracle of the pull alone is exact.
    trainer(precision="64-true").fit(module, data)
    for network, oracle, loss in zip(networks, oracles, joint_losses(oracles, x.double(), y, temperature), strict=True):
        for after, (before, gradient) in zip(
            network.parameters(),
            zip(oracle.parameters(), torch.autograd.grad(loss, list(oracle.parameters())), strict=True),
            strict=True,
        ):
            assert torch.allclose(before - after, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_one_optimizer_equals_synchronous_ones(
    count: int, kind: str, net: Any, loader: Any, trainer: Any, same_state: Any
) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
        return torch.optim.AdamW(parameters, lr=1e-2)

    networks = [net(3 + seed, seed) for seed in range(count)]
    twins = copy.deepcopy(networks)
    module = OnlineDistillation(networks[0], networks[1:], task=Classification(5), optimizer=optimizer)
    trainer(max_epochs=2, gradient_clip_val=0.3).fit(module, loader())

    from kdlightning.losses import kd_loss

    optimizers = [optimizer(twin.parameters()) for twin in twins]
    for _ in range(2):
        for x, y in loader():
            logits = [twin(x) for twin in twins]
            losses = []
            for i, mine in enumerate(logits):
                losses.append(F.cross_entropy(mine, y))  # before the others: sums of gradients have an order
                others = [kd_loss(mine, o.detach(), temperature=1.0) for j, o in enumerate(logits) if j != i]
                losses[i] = losses[i] + sum(others[1:], others[0]) / len(others)
            for one in optimizers:
                one.zero_grad()
            for loss in losses:
                loss.backward()
            for twin, one in zip(twins, optimizers, strict=True):
                nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
                one.step()
    for mine, twin in zip(networks, twins, strict=True):
        for ours, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_metrics_of_each_network_and_of_the_ensemble(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(3, 0), [net(4, 1), net(5, 2)], task=Classification(5))
    runner = trainer()
    runner.fit(module, loader(), loader())
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    module.eval()
    x, y = loader().dataset.tensors
    with torch.no_grad():
        probabilities = [network(x).softmax(1) for network in module.networks.values()]
    for name, p in zip(["", "_peer1", "_peer2"], probabilities, strict=True):
        assert metrics[f"val/acc{name}"] == pytest.approx(float((p.argmax(1) == y).float().mean()))
    together = sum(probabilities[1:], probabilities[0]) / 3
    assert metrics["val/acc_ensemble"] == pytest.approx(float((together.argmax(1) == y).float().mean()))
    assert metrics["val/loss_ensemble"] == pytest.approx(float(F.nll_loss(together.log(), y)), rel=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_feature_term_between_peers(count: int, net: Any, loader: Any, trainer: Any) -> None:
    networks = [net(3 + seed, seed) for seed in range(count)]
    twins = copy.deepcopy(networks)
    module = OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        weights={"dml": 0.0, "task": 0.0},
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    runner = trainer(max_steps=1, callbacks=[FeatureKD(AT(), {"stages.0": "stages.0"}, weight=10.0)])
    runner.fit(module, loader())

    from kdlightning.losses import attention_transfer_loss

    x, _ = next(iter(loader()))
    maps = [twin.stages[0](x) for twin in twins]
    for i, (network, twin) in enumerate(zip(networks, twins, strict=True)):
        terms = [attention_transfer_loss(maps[i], maps[j].detach()) for j in range(count) if j != i]
        loss = 10 * sum(terms[1:], terms[0]) / len(terms)
        stage = list(twin.stages[0].parameters())
        gradients = torch.autograd.grad(loss, stage, retain_graph=True)
        for after, before, gradient in zip(network.stages[0].parameters(), stage, gradients, strict=True):
            assert torch.allclose(before - after, gradient, rtol=1e-4, atol=1e-6)
        assert torch.equal(network.fc.weight, twin.fc.weight)


def test_adapters_of_each_pair_go_with_their_learner(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0),
        [net(4, 1), net(5, 2)],
        task=Classification(5),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        peer_optimizers=[{"lr": 0.2}, {"lr": 0.3}],
    )
    runner = trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.1"})])
    runner.fit(module, loader())
    assert sorted(module.adapters) == ["fit_net", "fit_net_peer1", "fit_net_peer2"]
    groups = {group["name"]: group for group in runner.optimizers[0].param_groups}
    assert [groups[name]["lr"] for name in ("student", "peer1", "peer2")] == [0.1, 0.2, 0.3]
    for name, network in module.networks.items():
        key = "fit_net" if name == "student" else f"fit_net_{name}"
        expected = {id(p) for p in [*network.parameters(), *module.adapters[key].parameters()]}
        assert {id(p) for p in groups[name]["params"]} == expected


def test_weight_of_the_strategy_holds_for_all_unless_given_for_one(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(4, 1), net(5, 2)], task=Classification(5), weights={"dml": 0.5, "dml_peer2": 2.0}
    )
    runner = trainer(max_steps=1)
    runner.fit(module, loader())
    m = {name.removeprefix("train/loss"): float(v) for name, v in runner.callback_metrics.items()}
    total = sum(m[f"_task{s}"] for s in ("", "_peer1", "_peer2"))
    total += 0.5 * m["_dml"] + 0.5 * m["_dml_peer1"] + 2 * m["_dml_peer2"]
    assert m[""] == pytest.approx(total, rel=1e-5)


def test_weight_of_a_callbacks_term_may_be_given_for_one_peer(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(4, 1)], task=Classification(5), weights={"dml": 0.0, "task": 0.0, "fit_net_peer1": 3.0}
    )
    runner = trainer(max_steps=1, callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})])
    runner.fit(module, loader())
    m = {name: float(v) for name, v in runner.callback_metrics.items()}
    assert m["train/loss"] == pytest.approx(m["train/loss_fit_net"] + 3 * m["train/loss_fit_net_peer1"], rel=1e-5)


def test_names_that_look_like_a_peers_are_refused(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5))
    callbacks = [FeatureKD(AT(), {"stages.0": "stages.0"}, name=name) for name in ("hint", "hint_peer1")]
    with pytest.raises(ConfigurationError, match="hint_peer1"):
        trainer(callbacks=callbacks).fit(module, loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": []}, "peers is empty"),
        ({"peer_optimizers": [{}, {}]}, "2 entries for 1 peers"),
        ({"task": MultiLabel(5)}, "probabilities"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str, net: Any) -> None:
    given = {"peers": [net(4, 1)], "task": Classification(5)} | options
    with pytest.raises(ConfigurationError, match=message):
        OnlineDistillation(net(3, 0), **given)


def test_one_network_twice_is_refused(net: Any) -> None:
    student = net(3, 0)
    with pytest.raises(ConfigurationError, match="same object"):
        OnlineDistillation(student, [net(4, 1), student], task=Classification(5))


def test_bfloat16_mixed_precision_runs(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5))
    runner = trainer(precision="bf16-mixed", callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})])
    runner.fit(module, loader(), loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_a_subclass_may_own_parameters(net: Any, loader: Any, trainer: Any) -> None:
    class Warm(OnlineDistillation):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.scale = nn.Parameter(torch.ones(()))

    module = Warm(net(4, 0), [net(5, 1)], task=Classification(5))
    groups = {group["name"]: group["params"] for group in module.parameter_groups()}
    assert any(parameter is module.scale for parameter in groups["student"])
    trainer().fit(module, loader())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigurationError, match="DML: temperature must be positive"):
        DML(temperature)
