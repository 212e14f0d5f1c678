"""Joint training against loops written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlightning import DML, Classification, ConfigurationError, JointTraining, MultiLabel, OnlineDistillation


def pull(student: Tensor, p: Tensor, temperature: float) -> Tensor:
    """T² KL(p ‖ student), a mean over samples, with plain sums."""
    q = (student / temperature).exp() / (student / temperature).exp().sum(1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum() / len(student)


def losses_of(logits: list[Tensor], y: Tensor, temperature: float, two_way: bool) -> list[Tensor]:
    """Each network's loss, 1.2 times the label's and 0.6 times the others'."""
    softened = [(z.detach() / temperature).softmax(1) for z in logits]
    losses = [1.2 * F.cross_entropy(z, y) for z in logits]
    losses[0] = losses[0] + 0.6 * pull(logits[0], sum(softened[1:]) / (len(logits) - 1), temperature)
    for number in range(1, len(logits) if two_way else 0):
        losses[number] = losses[number] + 0.6 * pull(logits[number], softened[0], temperature)
    return losses


def module_of(networks: list[nn.Module], two_way: bool, temperature: float, **options: Any) -> OnlineDistillation:
    return OnlineDistillation(
        networks[0],
        networks[1:],
        task=Classification(5),
        strategy=JointTraining(two_way, temperature),
        weights={"task": 1.2, "joint_training": 0.6},
        **options,
    )


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize(("count", "temperature"), [(2, 1.0), (3, 4.0)])
def test_gradients_are_those_of_the_joint_loss(
    two_way: bool, count: int, temperature: float, dense: Any, samples: Any, trainer: Any
) -> None:
    networks = [dense(seed, width=4 + seed).double() for seed in range(count)]
    twins = copy.deepcopy(networks)
    x, y = samples.tensors
    data = torch.utils.data.DataLoader(list(zip(x.double(), y, strict=True)), 26)
    module = module_of(networks, two_way, temperature, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    runner = trainer(precision="64-true")
    runner.fit(module, data)
    losses = losses_of([twin(x.double()) for twin in twins], y, temperature, two_way)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(float(sum(losses).detach()), rel=1e-6)
    for network, twin, loss in zip(networks, twins, losses, strict=True):
        before = list(twin.parameters())
        for ours, theirs, gradient in zip(network.parameters(), before, torch.autograd.grad(loss, before), strict=True):
            assert torch.allclose(theirs - ours, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize(("accumulate", "limit"), [(1, None), (3, None), (1, 2)])
def test_a_fit_equals_a_loop_by_hand(
    two_way: bool, accumulate: int, limit: int | None, net: Any, loader: Any, sgd: Any, trainer: Any
) -> None:
    networks = [net(3 + seed, seed) for seed in range(3)]
    twins = [copy.deepcopy(network).double() for network in networks]
    module = module_of(networks, two_way, 3.0, optimizer=sgd)
    trainer(
        max_epochs=2,
        precision="64-true",
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
    ).fit(module, loader(), loader())
    optimizers = [sgd(twin.parameters()) for twin in twins]
    for _ in range(2):
        batches = list(loader())[:limit]
        for number, (x, y) in enumerate(batches):
            for loss in losses_of([twin(x.double()) for twin in twins], y, 3.0, two_way):
                (loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    for mine, twin in zip(networks, twins, strict=True):
        for ours, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_one_way_peers_train_as_if_the_student_were_not_there(net: Any, loader: Any, trainer: Any) -> None:
    peers = []
    for seed in (0, 5):
        peer = net(4, 1)
        trainer().fit(
            OnlineDistillation(net(3, seed), [peer], task=Classification(5), strategy=JointTraining()), loader()
        )
        peers.append(peer)
    for ours, theirs in zip(peers[0].parameters(), peers[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_two_ways_with_one_peer_is_mutual_learning(net: Any, loader: Any, trainer: Any) -> None:
    modules = []
    for strategy in (JointTraining(two_way=True, temperature=2.0), DML(2.0)):
        module = OnlineDistillation(net(3, 0), [net(4, 1)], task=Classification(5), strategy=strategy)
        trainer().fit(module, loader())
        modules.append(module)
    for ours, theirs in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_terms_are_the_students_unless_both_learn(net: Any, loader: Any, trainer: Any) -> None:
    for two_way in (False, True):
        module = OnlineDistillation(
            net(3, 0), [net(4, 1)], task=Classification(5), strategy=JointTraining(two_way=two_way)
        )
        runner = trainer(max_steps=1)
        runner.fit(module, loader())
        terms = {name for name in runner.callback_metrics if "joint" in name}
        both = {"train/loss_joint_training", "train/loss_joint_training_peer1"}
        assert terms == (both if two_way else {"train/loss_joint_training"})
    module = OnlineDistillation(
        net(3, 0),
        [net(4, 1)],
        task=Classification(5),
        strategy=JointTraining(),
        weights={"joint_training_peer1": 1.0},
    )
    with pytest.raises(ConfigurationError, match="joint_training_peer1"):
        trainer().fit(module, loader())


def test_bad_input_is_refused(net: Any) -> None:
    with pytest.raises(ConfigurationError, match="JointTraining: temperature"):
        JointTraining(temperature=-1.0)
    with pytest.raises(ConfigurationError, match="JointTraining compares class probabilities"):
        OnlineDistillation(net(3, 0), [net(4, 1)], task=MultiLabel(5), strategy=JointTraining())
