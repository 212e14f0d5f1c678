"""Mutual learning with the networks updated one after the other, against a loop written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlightning import (
    DML,
    EMA,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    LinearSchedule,
    OnlineDistillation,
)


def loss_of(number: int, logits: list[Tensor], y: Tensor, temperature: float) -> Tensor:
    """One network's loss against what the others answer now, with plain sums."""
    q = (logits[number] / temperature).log_softmax(1)
    pulls = []
    for other, z in enumerate(logits):
        if other != number:
            p = (z.detach() / temperature).softmax(1)
            pulls.append(temperature**2 * (p * (p.log() - q)).sum() / len(y))
    return 1.2 * F.cross_entropy(logits[number], y) + 0.8 * sum(pulls) / len(pulls)


def by_hand(
    networks: list[nn.Module],
    batches: list[Any],
    make: Callable[[Any], torch.optim.Optimizer],
    temperature: float = 1.0,
    clip: Callable[[Any], Any] = lambda parameters: None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    each_step: bool = False,
) -> list[float]:
    """The paper's loop with an optimizer for each network, over two epochs; gives the summed losses."""
    optimizers = [make(network.parameters()) for network in networks]
    schedulers = [] if schedule is None else [schedule(optimizer) for optimizer in optimizers]
    sums = []
    for _ in range(2):
        for x, y in batches:
            logits = [network(x) for network in networks]
            losses = []
            for number, network in enumerate(networks):
                loss = loss_of(number, logits, y, temperature)
                optimizers[number].zero_grad()
                loss.backward()
                clip(network.parameters())
                optimizers[number].step()
                losses.append(float(loss.detach()))
                if number + 1 < len(networks):
                    with torch.no_grad():
                        logits[number] = network(x)
            sums.append(sum(losses))
            for scheduler in schedulers if each_step else []:
                scheduler.step()
        for scheduler in schedulers if not each_step else []:
            scheduler.step()
    return sums


def module_of(networks: list[nn.Module], temperature: float = 1.0, **options: Any) -> OnlineDistillation:
    return OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        strategy=DML(temperature, sequential=True),
        **{"weights": {"task": 1.2, "dml": 0.8}, **options},
    )


def same(networks: list[nn.Module], twins: list[nn.Module]) -> None:
    for network, twin in zip(networks, twins, strict=True):
        for name, value in network.state_dict().items():
            # The trainer's sum over classes and this file's differ in the last digits.
            assert torch.allclose(value, twin.state_dict()[name], rtol=1e-7, atol=1e-9), name


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


def halved_each(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


CASES = [
    ({}, {}, {}),
    ({"gradient_clip_val": 0.3}, {"clip": lambda p: nn.utils.clip_grad_norm_(p, 0.3)}, {}),
    (
        {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        {"clip": lambda p: nn.utils.clip_grad_value_(p, 0.02)},
        {},
    ),
    ({}, {"schedule": halved_each}, {"lr_scheduler": halved_each}),
    (
        {},
        {"schedule": halved_each, "each_step": True},
        {"lr_scheduler": halved_each, "lr_interval": "step"},
    ),
]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("make", [adamw, momentum])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_fit_equals_a_loop_by_hand(count: int, make: Any, case: int, net: Any, loader: Any, trainer: Any) -> None:
    options, ours, given = CASES[case]
    networks = [net(3 + seed, seed).double() for seed in range(count)]
    twins = copy.deepcopy(networks)
    logged = []

    class Read(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            logged.append(float(trainer.callback_metrics["train/loss"]))

    module = module_of(networks, 2.0, optimizer=make, **given)
    trainer(max_epochs=2, precision="64-true", val_check_interval=2, callbacks=[Read()], **options).fit(
        module, loader(), loader()
    )
    batches = [(x.double(), y) for x, y in loader()]
    sums = by_hand(twins, batches, make, 2.0, **ours)
    same(networks, twins)
    assert logged[:4] == pytest.approx(sums[:4])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_forward_passes_are_counted(count: int, net: Any, loader: Any, trainer: Any) -> None:
    networks = [net(3 + seed, seed) for seed in range(count)]
    calls: list[tuple[int, bool]] = []
    for number, network in enumerate(networks):
        network.register_forward_hook(lambda m, i, o, number=number: calls.append((number, torch.is_grad_enabled())))
    module = module_of(networks)
    trainer(max_steps=1).fit(module, loader())
    assert len(calls) == 2 * count - 1
    first, again = calls[:count], calls[count:]
    assert first == [(number, True) for number in range(count)]
    assert again == [(number, False) for number in range(count - 1)]


def test_time_is_that_of_the_batches(net: Any, loader: Any, trainer: Any) -> None:
    moments = []

    class Read(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            moments.append((trainer.global_step, pl_module.progress))

    module = module_of([net(3, 0), net(4, 1), net(5, 2)])
    runner = trainer(max_epochs=2, callbacks=[Read()])
    runner.fit(module, loader())
    assert moments == [(step, step / 8) for step in range(8)]
    assert runner.global_step == 8
    module = module_of([net(3, 0), net(4, 1)])
    runner = trainer(max_epochs=-1, max_steps=5)
    runner.fit(module, loader())
    assert runner.global_step == 5


def test_terms_are_logged_as_in_the_other_form(net: Any, loader: Any, trainer: Any) -> None:
    names = []
    for sequential in (False, True):
        module = OnlineDistillation(
            net(3, 0), [net(4, 1), net(5, 2)], task=Classification(5), strategy=DML(sequential=sequential)
        )
        runner = trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})])
        runner.fit(module, loader(), loader())
        names.append(set(runner.callback_metrics))
        m = {name: float(value) for name, value in runner.callback_metrics.items()}
        parts = sum(m[f"train/loss_{term}{peer}"] for term in ("task", "dml", "fit_net") for peer in PEERS)
        assert m["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert names[0] == names[1]


PEERS = ("", "_peer1", "_peer2")


def test_a_term_on_taps_reads_the_updated_network(net: Any, loader: Any, trainer: Any) -> None:
    networks = [net(3, 0), net(4, 1)]
    twins = copy.deepcopy(networks)
    module = module_of(networks, weights={"task": 0.0, "dml": 0.0}, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    runner = trainer(max_steps=1, callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"}, weight=10.0)])
    adapters: dict[str, Any] = {}
    module.on_train_start = lambda: (  # type: ignore[method-assign]
        adapters.update(copy.deepcopy(dict(module.adapters.items()))),
        OnlineDistillation.on_train_start(module),
    )
    runner.fit(module, loader())
    x, _ = next(iter(loader()))
    optimizers = []
    for number, (name, other) in enumerate([("fit_net", "peer1"), ("fit_net_peer1", "student")]):
        mine, theirs = twins[number], twins[1 - number]
        with torch.no_grad():
            seen = theirs.stages[0](x)
        term = adapters[name][other]
        loss = 10 * term([mine.stages[0](x)], [seen], batch=None, progress=0.0)
        optimizers.append(torch.optim.SGD([*mine.parameters(), *term.parameters()], lr=1.0))
        loss.backward()
        optimizers[-1].step()
    for network, twin in zip(networks, twins, strict=True):
        for ours, expected in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)
    for name, other in (("fit_net", "peer1"), ("fit_net_peer1", "student")):
        for ours, expected in zip(
            module.adapters[name][other].parameters(), adapters[name][other].parameters(), strict=True
        ):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_networks_without_a_term_rest(net: Any, loader: Any, trainer: Any) -> None:
    networks = [net(3, 0), net(4, 1), net(5, 2)]
    before = copy.deepcopy(networks)
    weights = {"task": 0.0, "dml": 0.0, "task_peer1": 1.0, "dml_peer1": 1.0}
    trainer(max_steps=2).fit(module_of(networks, weights=weights, optimizer=momentum), loader())
    changed = [
        not all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
        for new, old in zip(networks, before, strict=True)
    ]
    assert changed == [False, True, False]
    with pytest.raises(ConfigurationError, match="no term is left"):
        trainer(max_steps=2).fit(module_of(before, weights={"task": 0.0, "dml": 0.0}), loader())
    late = {name: LinearSchedule(0, 1, begin=0.5) for name in ("task", "dml")}
    trainer(max_steps=4).fit(module_of(before, weights=late), loader())


@pytest.mark.parametrize(
    ("stops", "options"),
    [
        ((1,), {}),
        ((4,), {"gradient_clip_val": 0.5}),
        ((3, 6), {"val_check_interval": 2}),
        ((5,), {"limit_train_batches": 3, "precision": "bf16-mixed"}),
    ],
)
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_resumed_run_ends_where_the_undisturbed_one_ends(
    stops: tuple[int, ...], options: Any, interval: str, net: Any, resumable_loader: Any, fit_until: Any,
    same_state: Any
) -> None:  # fmt: skip
    def make() -> OnlineDistillation:
        networks = [net(3, 0, dropout=0.3), net(4, 1), net(5, 2)]
        return module_of(networks, optimizer=adamw, lr_scheduler=halved_each, lr_interval=interval)

    data = resumable_loader(), resumable_loader(shuffle=False)
    hint = {"stages.0": "stages.0"}
    whole = fit_until("whole", make, *data, callbacks=[FeatureKD(FitNet(), hint)], **options)
    for stop in stops:
        fit_until("cut", make, *data, stop=stop, callbacks=[FeatureKD(FitNet(), hint)], **options)
    resumed = fit_until("cut", make, *data, callbacks=[FeatureKD(FitNet(), hint)], **options)
    assert resumed.global_step == whole.global_step
    same_state(whole, resumed)


def test_an_average_counts_batches(net: Any, loader: Any, trainer: Any) -> None:
    average = EMA(0.9)
    trainer(callbacks=[average]).fit(module_of([net(3, 0), net(4, 1)]), loader(), loader())
    assert average.updates == 4


def test_bfloat16_mixed_precision_runs_in_every_turn(net: Any, loader: Any, trainer: Any) -> None:
    networks = [net(3, 0), net(4, 1), net(5, 2)]
    kinds = []
    for network in networks:
        network.stages[0].register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    runner = trainer(max_steps=1, precision="bf16-mixed")
    runner.fit(module_of(networks), loader())
    assert len(kinds) == 5
    assert len(set(kinds)) == 1
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_accumulation_is_refused_by_name(net: Any, loader: Any, trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"DML\(sequential=True\).*accumulate_grad_batches"):
        trainer(accumulate_grad_batches=2).fit(module_of([net(3, 0), net(4, 1)]), loader())
    later = L.pytorch.callbacks.GradientAccumulationScheduler({1: 2})
    with pytest.raises(ConfigurationError, match="accumulate_grad_batches"):
        trainer(callbacks=[later]).fit(module_of([net(3, 0), net(4, 1)]), loader())


def test_a_subclass_may_add_terms_of_its_own(net: Any, loader: Any, trainer: Any) -> None:
    class Small(OnlineDistillation):
        def distill_terms(self, step: Any) -> dict[str, Tensor]:
            outputs = [step.student, *step.peers]
            names = ("small", "small_peer1")
            return {name: o.logits.square().mean() for name, o in zip(names, outputs, strict=True)}

    module = Small(net(3, 0), [net(4, 1)], task=Classification(5), strategy=DML(sequential=True))
    runner = trainer(max_steps=1)
    runner.fit(module, loader())
    m = {name.removeprefix("train/loss"): float(value) for name, value in runner.callback_metrics.items()}
    assert m[""] == pytest.approx(sum(value for name, value in m.items() if name), rel=1e-5)
    assert m["_small"] > 0
    assert m["_small_peer1"] > 0
