"""Codistillation: two processes against a loop by hand in one, and what one process can show."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn import functional as F

from kdlightning import (
    EMA,
    Classification,
    Codistillation,
    FeatureKD,
    FitNet,
    MultiLabel,
    OnlineDistillation,
    load_student,
)
from kdlightning.data.sampler import EpochSampler
from kdlightning.data.seeding import mix, seed_generators
from kdlightning.errors import ConfigurationError
from kdlightning.models import packed
from kdlightning.strategies import codistillation

SCRIPT = Path(__file__).with_name("codistillation_script.py")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("codistillation_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


script = load_script()


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("codistillation")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PL_GLOBAL_SEED", None)
    command = [sys.executable, str(SCRIPT), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def two_networks() -> list[nn.Module]:
    first = script.network(0)
    second = copy.deepcopy(first)
    seed_generators(mix(script.SEED, 1))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return [first, second]


def loop_by_hand(name: str) -> dict[int, list[dict[str, Any]]]:
    """Both networks after each optimizer step, trained by turns in one process."""
    data, accumulate = script.images(), script.ACCUMULATE[name]
    networks, copies, step = two_networks(), [], 0
    optimizers = [script.sgd(network.parameters()) for network in networks]
    found = {0: [script.state(network) for network in networks]}
    for epoch in range(script.EPOCHS[name]):
        orders = []
        for rank in (0, 1):
            sampler = EpochSampler(data, seed=3, rank=rank, world_size=2)
            sampler.set_epoch(epoch)
            orders.append(list(map(int, sampler)))
        starts = range(0, len(orders[0]), 2)
        for number, start in enumerate(starts):
            for rank, network in enumerate(networks):
                x, y = data[orders[rank][start : start + 2]]
                seed_generators(mix(script.SEED, rank, epoch, number))
                answer = network.train()(x)
                loss = F.cross_entropy(answer, y)
                if copies:
                    with torch.no_grad():
                        target = copies[1 - rank].eval()(x).softmax(1)
                    loss = loss + F.kl_div(answer.log_softmax(1), target, reduction="batchmean")
                (loss / accumulate).backward()
            if (number + 1) % accumulate and number + 1 < len(starts):
                continue
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            found[step] = [script.state(network) for network in networks]
            if step >= script.BURN_IN and (step - script.BURN_IN) % script.INTERVAL == 0:
                copies = copy.deepcopy(networks)
    return found


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_both_networks_are_those_of_a_loop_by_hand(name: str, ranks: list[dict[str, Any]]) -> None:
    expected = loop_by_hand(name)
    assert max(expected) == 12
    for rank, report in enumerate(ranks):
        assert report[name]["own"].keys() == expected.keys()
        for step, states in expected.items():
            torch.testing.assert_close(report[name]["own"][step], states[rank], rtol=1e-4, atol=1e-6)
    assert not equal(expected[0][0], expected[0][1]), "ranks begin differently"
    assert not equal(expected[12][0], expected[12][1])


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_copies_are_as_old_as_they_should_be(name: str, ranks: list[dict[str, Any]]) -> None:
    made = {0: None, 1: None, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6, 7: 6, 8: 6, 9: 6, 10: 10, 11: 10}
    for rank, report in enumerate(ranks):
        other = 1 - rank
        assert report[name]["copies"].keys() == made.keys()
        for step, origin in made.items():
            copies = report[name]["copies"][step]
            assert list(copies) == ([] if origin is None else [other])
            assert origin is None or equal(copies[other], ranks[other][name]["own"][origin])


def test_resumed_run_ends_where_the_undisturbed_one_ends(ranks: list[dict[str, Any]]) -> None:
    for report in ranks:
        whole, resumed = report["plain"], report["resumed"]
        assert min(resumed["copies"]) == script.BROKEN_OFF
        assert all(equal(whole["own"][step], resumed["own"][step]) for step in range(script.BROKEN_OFF, 13))
        for step, copies in resumed["copies"].items():
            assert copies.keys() == whole["copies"][step].keys()
            assert all(equal(copies[rank], whole["copies"][step][rank]) for rank in copies)
        assert whole["metrics"] == resumed["metrics"]


def test_metrics_are_those_of_the_first_network(ranks: list[dict[str, Any]]) -> None:
    x, y = script.images().tensors
    network = script.network(0).eval()
    network.load_state_dict(ranks[0]["plain"]["own"][12])
    with torch.no_grad():
        answer = network(x)
    first, second = (rank["plain"]["metrics"] for rank in ranks)
    assert first == second
    assert set(first) == {"val/acc", "val/loss"}
    assert first["val/acc"] == pytest.approx(float((answer.argmax(1) == y).float().mean()))
    assert first["val/loss"] == pytest.approx(float(F.cross_entropy(answer, y)), rel=1e-5)


def test_each_network_leaves_alone(folder: Path, ranks: list[dict[str, Any]]) -> None:
    path = folder / "plain" / "last.ckpt"
    for rank, which in enumerate(("student", "peer1")):
        network = load_student(path, script.network(5), which=which)
        assert equal(script.state(network), ranks[rank]["plain"]["own"][12])
    with pytest.raises(ConfigurationError, match="holds no 'peer2': its networks are student, peer1"):
        load_student(path, script.network(5), which="peer2")


def test_the_anchor_stays_zero(ranks: list[dict[str, Any]]) -> None:
    assert all(float(rank["plain"]["last"]["strategy.anchor"]) == 0 for rank in ranks)


def test_another_number_of_processes_is_refused(folder: Path) -> None:
    module = module_of(script.network(0))
    module._trainer = SimpleNamespace(world_size=3, global_rank=0, state=SimpleNamespace(fn="fit"))
    checkpoint = torch.load(folder / "plain" / "last.ckpt", weights_only=True)
    with pytest.raises(ConfigurationError, match="the networks of 2 processes and this run has 3"):
        module.on_load_checkpoint(checkpoint)


# -- one process -------------------------------------------------------------------------------------------------------


def module_of(student: nn.Module, **options: Any) -> OnlineDistillation:
    return OnlineDistillation(student, task=Classification(5), strategy=Codistillation(**options))


def test_every_process_keeps_copies_of_all_others(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [net(3, seed) for seed in range(3)]
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(codistillation, "network_of_rank", lambda _, rank: packed.packed(networks[rank]))
    strategy = Codistillation(interval=2, burn_in=1)
    strategy.start([networks[1]], 0)
    assert not strategy.copies
    strategy.after_optimizer_step([networks[1]], 1)
    assert list(strategy.copies) == [0, 2]
    before = script.state(networks[2])
    networks[2](torch.randn(4, 1, 8, 8))  # moves its statistics
    strategy.after_optimizer_step([networks[1]], 2)
    assert equal(script.state(strategy.copies[2]), before)
    strategy.after_optimizer_step([networks[1]], 3)
    for rank, frozen in strategy.copies.items():
        assert equal(script.state(frozen), script.state(networks[rank]))
        assert not frozen.training
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert [name for name, _ in strategy.named_parameters()] == ["anchor"]
    assert list(strategy.state_dict()) == ["anchor"]


def test_packed_networks_come_out_bit_for_bit() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4).T)
            self.register_buffer("flag", torch.tensor([True, False, True]))
            self.register_buffer("short", torch.randn(3).bfloat16(), persistent=False)
            self.register_buffer("count", torch.tensor(2**40 + 1))
            self.register_buffer("wide", torch.randn(2, dtype=torch.float64))

    first, second = Mixed(), Mixed()
    second.flag.zero_()
    packed.unpack(second, packed.packed(first))
    assert equal(dict(first.named_buffers()), dict(second.named_buffers()))
    assert torch.equal(first.weight, second.weight)


def test_one_process_is_told_how_to_start_several(net: Any, trainer: Any, loader: Any) -> None:
    with pytest.raises(ConfigurationError, match="--trainer.devices 2 --trainer.strategy ddp"):
        trainer().fit(module_of(net(3, 0)), loader())


def test_one_process_evaluates(net: Any, trainer: Any, loader: Any) -> None:
    module = module_of(net(3, 0))
    module.strategy.copies[1] = net(3, 1)
    score = trainer().validate(module, loader(), verbose=False)[0]
    assert set(score) == {"val/acc", "val/loss"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": SingleDeviceStrategy()}, "Codistillation needs --trainer.strategy ddp, not SingleDeviceStrategy"),
        ({"sync": object()}, "sync_batchnorm would mix the processes' networks"),
        ({"callbacks": [EMA()]}, "EMA keeps the average of one network"),
        ({"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging keeps the average of one network"),
        ({"knowledge": FeatureKD(FitNet(), {"stages.0": "stages.0"})}, "FeatureKD.* would need the other networks"),
    ],
)
def test_what_would_mix_or_lose_networks_is_refused(change: dict[str, Any], message: str, net: Any) -> None:
    module = module_of(net(3, 0))
    strategy: Any = change.get("strategy", DDPStrategy())
    strategy._layer_sync = change.get("sync")
    callbacks = change.get("callbacks", [])
    module._trainer = SimpleNamespace(world_size=2, strategy=strategy, callbacks=callbacks)
    if "knowledge" in change:
        change["knowledge"].setup(module._trainer, module, "fit")
    with pytest.raises(ConfigurationError, match=message):
        module.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "Codistillation: interval must be at least 1, not 0"),
        ({"temperature": 0.0}, "Codistillation: temperature must be above 0, not 0.0"),
        ({"burn_in": -1}, "Codistillation: burn_in must be at least 0, not -1"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Codistillation(**options)


def test_peers_and_tasks_that_do_not_fit_are_refused(net: Any) -> None:
    with pytest.raises(ConfigurationError, match="on each process: leave peers out"):
        OnlineDistillation(net(3, 0), [net(3, 1)], task=Classification(5), strategy=Codistillation())
    with pytest.raises(ConfigurationError, match="1 entries for 0 peers"):
        OnlineDistillation(net(3, 0), task=Classification(5), strategy=Codistillation(), peer_optimizers=[{"lr": 0.1}])
    with pytest.raises(ConfigurationError, match="Codistillation compares class probabilities"):
        OnlineDistillation(net(3, 0), task=MultiLabel(5), strategy=Codistillation())
