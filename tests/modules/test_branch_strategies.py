"""ONE, CL-ILR and OKDDip on branches of one trunk, against loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlightning import (
    AT,
    CLILR,
    ONE,
    RKD,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    MultiLabel,
    OKDDip,
    OnlineDistillation,
    RelationKD,
    load_student,
    timm_model,
    transformers_model,
)
from kdlightning.callbacks import EMA

T = 2.0
STRATEGIES: dict[str, Callable[[], Any]] = {
    "one": lambda: ONE("stages.0", branches=3, temperature=T),
    "clilr": lambda: CLILR("stages.0", branches=3, temperature=T),
    "okddip": lambda: OKDDip("stages.0", branches=4, temperature=T, factor=2),
    "okddip_constant": lambda: OKDDip("stages.0", branches=3, temperature=T, constant_targets=True),
}
"""On a network with stages of 4 and 8 channels."""


class Unread(L.Callback):
    """Names the parameters that a step left without a gradient, which DDP would wait for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.names = [name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None]


def give_parts(module: OnlineDistillation) -> OnlineDistillation:
    """Makes the strategy's own networks before a fit does, so that a loop may begin with the same."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        if isinstance(module.strategy, ONE):
            module.strategy.parts.update({"scores": nn.Linear(4, module.strategy.branches)})
            module.strategy.parts.update({"norm": nn.BatchNorm1d(module.strategy.branches)})
        elif isinstance(module.strategy, OKDDip):
            width = 8 // module.strategy.factor
            for side in ("query8", "key8"):
                module.strategy.parts.update({side: nn.Linear(8, width, bias=False)})
    return module


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(net: Any, sgd: Any) -> Callable[..., OnlineDistillation]:
    def build(name: str, **options: Any) -> OnlineDistillation:
        torch.manual_seed(4)
        options = {"optimizer": sgd, "task": Classification(5), **options}
        return give_parts(OnlineDistillation(net(4, 0), strategy=STRATEGIES[name](), **options))

    return build


def kl(target: Tensor, own: Tensor) -> Tensor:
    """T²·KL of softened probabilities, a mean over the batch, written out."""
    p, q = (target / T).softmax(1), (own / T).softmax(1)
    return T**2 * (p * (p.log() - q.log())).sum() / len(own)


def run(module: OnlineDistillation, x: Tensor, scale: float = 1.0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The trunk once, and each branch's own layers on it: split, logits, vectors."""
    split = module.student.stages[0](x)
    split = scale * split + (1 - scale) * split.detach()
    vectors = [network.stages[1](split).mean((2, 3)) for network in module.networks.values()]
    logits = [network.fc(v) for network, v in zip(module.networks.values(), vectors, strict=True)]
    return split, logits, vectors


def joint_loss(name: str, module: OnlineDistillation, x: Tensor, y: Tensor) -> Tensor:
    """The sum of all terms."""
    count = len(module.networks)
    split, logits, vectors = run(module, x, 1 / count if name == "clilr" else 1.0)
    labels = [F.cross_entropy(z, y) for z in logits]
    if name == "one":
        parts = module.strategy.parts
        gates = parts["norm"](parts["scores"](split.mean((2, 3)))).relu().softmax(1)
        together = sum(gates[:, k, None] * z for k, z in enumerate(logits))
        return sum(labels) + F.cross_entropy(together, y) + sum(kl(together.detach(), z) for z in logits)
    if name == "clilr":
        others = [sum(z.detach() for j, z in enumerate(logits) if j != i) / (count - 1) for i in range(count)]
        return sum(0.5 * label + 0.5 * kl(t, z) for label, t, z in zip(labels, others, logits, strict=True))
    answers = [z.detach() for z in logits[1:]] if name == "okddip_constant" else logits[1:]
    query, key = module.strategy.parts["query8"].weight, module.strategy.parts["key8"].weight
    total = sum(labels) + kl(sum(answers) / len(answers), logits[0])
    for own, z in zip(vectors[1:], logits[1:], strict=True):
        scores = torch.stack([((own @ query.T) * (other @ key.T)).sum(1) for other in vectors[1:]], dim=1).exp()
        shares = scores / scores.sum(1, keepdim=True)
        total = total + kl(sum(shares[:, b, None] * answer for b, answer in enumerate(answers)), z)
    return total


def test_gradients_are_those_of_the_joint_loss(name: str, make: Any, samples: Any, trainer: Any) -> None:
    x, y = samples.tensors
    module = make(name, optimizer=lambda p: torch.optim.SGD(p, lr=1.0)).double()
    twin = copy.deepcopy(module)
    data = torch.utils.data.DataLoader(list(zip(x.double(), y, strict=True)), 26)
    trainer(precision="64-true").fit(module, data)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    gradients = torch.autograd.grad(joint_loss(name, twin, x.double(), y), parameters)
    for own, before, gradient in zip(names, parameters, gradients, strict=True):
        after = module.get_parameter(own)
        assert torch.allclose(before - after, gradient, rtol=1e-6, atol=1e-8), own


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_fit_equals_a_loop_by_hand(
    name: str, accumulate: int, make: Any, resumable_loader: Any, sgd: Any, trainer: Any
) -> None:
    module = make(name)
    twin = copy.deepcopy(module)
    trainer(max_epochs=2, accumulate_grad_batches=accumulate).fit(module, resumable_loader(), resumable_loader())
    optimizer, loader = sgd(twin.parameters()), resumable_loader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = [batch.data for batch in loader]
        for number, (x, y) in enumerate(batches):
            (joint_loss(name, twin, x, y) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    theirs = twin.state_dict()
    for key, value in module.state_dict().items():
        assert torch.allclose(value, theirs[key], atol=1e-5), key


def test_validation_within_an_epoch_changes_nothing(name: str, make: Any, loader: Any, trainer: Any) -> None:
    states = []
    for options in ({}, {"val_check_interval": 2}):
        module = make(name)
        trainer(max_epochs=2, **options).fit(module, loader(), loader() if options else None)
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("stop", [2, 4])
def test_a_broken_run_goes_on_bit_for_bit(
    name: str, stop: int, net: Any, resumable_loader: Any, fit_until: Any, same_state: Any
) -> None:
    def module() -> OnlineDistillation:
        optimizer = lambda p: torch.optim.AdamW(p, lr=1e-2)  # noqa: E731
        student = net(4, 0, dropout=0.3)
        return OnlineDistillation(student, task=Classification(5), strategy=STRATEGIES[name](), optimizer=optimizer)

    data = (resumable_loader(), resumable_loader(shuffle=False))
    whole = fit_until("whole", module, *data)
    fit_until("cut", module, *data, stop=stop)
    same_state(fit_until("cut", module, *data), whole)


def test_the_trunk_runs_once_and_each_branch_once(name: str, make: Any, loader: Any, trainer: Any) -> None:
    module = make(name)
    runner = trainer(max_steps=2, num_sanity_val_steps=0)
    calls: list[str] = []
    runner.fit(module, loader())  # taps are probed here
    module.student.stages[0].register_forward_hook(lambda *_: calls.append("trunk"))
    for own, network in module.networks.items():
        network.fc.register_forward_hook(lambda *_, own=own: calls.append(own))
    module.train()
    for stage in ("train", "val"):
        calls.clear()
        module._open_readers()
        module.make_step(module.task.batch(next(iter(loader()))), stage)
        assert calls == ["trunk", *module.networks]


def test_a_copy_of_the_module_learns_the_same_and_apart(name: str, make: Any, loader: Any, trainer: Any) -> None:
    module = make(name)
    twin = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    trainer().fit(twin, loader())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    trainer().fit(module, loader())
    theirs = twin.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())


def test_the_ensemble_is_scored(name: str, make: Any, loader: Any, trainer: Any) -> None:
    module = make(name)
    runner = trainer(max_epochs=2)
    runner.fit(module, loader(), loader(26))
    metrics = {key: float(value) for key, value in runner.callback_metrics.items()}
    module.eval()
    x, y = loader().dataset.tensors
    with torch.no_grad():
        split, logits, _ = run(module, x)
        if name == "one":
            parts = module.strategy.parts
            gates = parts["norm"](parts["scores"](split.mean((2, 3)))).relu().softmax(1)
            together = sum(gates[:, k, None] * z for k, z in enumerate(logits))
        elif name == "clilr":
            together = (sum(z.softmax(1) for z in logits) / len(logits)).log()
        else:
            together = sum(logits[1:]) / (len(logits) - 1)
    for own, z in zip(["", *(f"_peer{j}" for j in range(1, len(logits)))], logits, strict=True):
        assert metrics[f"val/loss{own}"] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-4)
    assert metrics["val/loss_ensemble"] == pytest.approx(float(F.cross_entropy(together, y)), rel=1e-4)
    assert metrics["val/acc_ensemble"] == pytest.approx(float((together.argmax(1) == y).float().mean()))


@pytest.mark.parametrize(
    ("name", "weights", "still"),
    [
        ("one", {"one_ensemble": 0.0}, True),
        ("one", {"one": 0.0}, False),
        ("one", {"one": 0.0, "one_ensemble": 0.0}, True),
        ("okddip", {"okddip": 0.0}, True),
        ("okddip", {"okddip": 0.0, "okddip_peer2": 1.0}, False),
        ("okddip", {"okddip_peer1": 0.0, "okddip_peer2": 0.0, "okddip_peer3": 0.0}, True),
    ],
)
def test_a_weight_of_zero_leaves_a_term_and_its_networks_out(
    name: str, weights: Any, still: bool, make: Any, loader: Any, trainer: Any
) -> None:
    module = make(name, weights=weights)
    before = [parameter.detach().clone() for parameter in module.strategy.parameters()]
    runner = trainer()
    runner.fit(module, loader())
    after = list(module.strategy.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)) == still
    assert all(parameter.grad is not None for parameter in after)  # as DDP wants it
    logged = {key.removeprefix("train/loss_") for key in runner.callback_metrics}
    assert not logged & {key for key, weight in weights.items() if weight == 0}


def test_the_given_weights_hold(make: Any, loader: Any, trainer: Any) -> None:
    module = make("one", weights={"one": 0.5, "one_peer2": 2.0, "one_ensemble": 3.0, "task": 0.25})
    runner = trainer(max_steps=1)
    runner.fit(module, loader())
    m = {key.removeprefix("train/loss"): float(value) for key, value in runner.callback_metrics.items()}
    total = 0.25 * sum(m[f"_task{s}"] for s in ("", "_peer1", "_peer2")) + 3 * m["_one_ensemble"]
    assert m[""] == pytest.approx(total + 0.5 * m["_one"] + 0.5 * m["_one_peer1"] + 2 * m["_one_peer2"], rel=1e-5)


def test_callbacks_between_branches(name: str, make: Any, loader: Any, trainer: Any) -> None:
    from kdlightning.losses import attention_transfer_loss, rkd_loss

    quiet = dict.fromkeys(("task", name.split("_")[0]), 0.0) | ({"one_ensemble": 0.0} if name == "one" else {})
    module = make(name, weights=quiet, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    twin = copy.deepcopy(module)
    callbacks = [
        FeatureKD(AT(), {"stages.1": "stages.1"}, weight=10.0),
        RelationKD(RKD(), {"pre_logits": "pre_logits"}, weight=2.0),
    ]
    trainer(max_steps=1, callbacks=callbacks).fit(module, loader())
    x, _ = next(iter(loader()))
    count = len(twin.networks)
    split = twin.student.stages[0](x)
    split = split / count + (1 - 1 / count) * split.detach() if name == "clilr" else split
    maps = [network.stages[1](split) for network in twin.networks.values()]
    loss = torch.zeros(())
    for i, own in enumerate(maps):
        for j, other in enumerate(maps):
            if i != j:
                pull = 10 * attention_transfer_loss(own, other.detach())
                pull = pull + 2 * rkd_loss(own.mean((2, 3)), other.detach().mean((2, 3)))
                loss = loss + pull / (count - 1)
    parameters = [*twin.student.stages.parameters(), *twin.peers[0].stages[1].parameters()]
    learned = [*module.student.stages.parameters(), *module.peers[0].stages[1].parameters()]
    for before, after, gradient in zip(parameters, learned, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.allclose(before - after, gradient, rtol=1e-3, atol=1e-5)


def test_groups_of_the_optimizer(name: str, make: Any) -> None:
    count = len(make(name).peers)
    module = make(name, peer_optimizers=[{"lr": 0.1 * j} for j in range(1, count + 1)])
    groups = module.parameter_groups()
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in module.parameters())
    whole = [*module.student.parameters(), *module.strategy.parameters()]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in whole}
    assert [group.get("lr") for group in groups[1:]] == [pytest.approx(0.1 * j) for j in range(1, count + 1)]


def test_state_holds_the_trunk_once(name: str, make: Any, net: Any) -> None:
    module = make(name)
    names = [key.removeprefix("peers.") for key in module.state_dict() if key.startswith("peers.")]
    assert {key.split(".", 1)[1] for key in names} == {k for k in net(4, 0).state_dict() if "stages.0" not in k}
    assert all(torch.equal(v, net(4, 0).state_dict()[k]) for k, v in module.student.state_dict().items())


def test_bfloat16_mixed_precision_runs(name: str, make: Any, loader: Any, trainer: Any) -> None:
    runner = trainer(precision="bf16-mixed", max_epochs=2)
    runner.fit(make(name), loader(), loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert torch.isfinite(runner.callback_metrics["val/loss_ensemble"])


def test_okddip_with_networks_of_several_widths(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(
        net(3, 0), [net(4, 1), net(5, 2), net(4, 3)], task=Classification(5), strategy=OKDDip(factor=4)
    )
    unread = Unread()
    runner = trainer(callbacks=[unread])
    runner.fit(module, loader(), loader())
    assert {key: tuple(part.weight.shape) for key, part in module.strategy.parts.items()} == {
        "key8": (2, 8),
        "query8": (2, 8),
        "key10": (2, 10),
        "query10": (2, 10),
    }
    assert unread.names == []
    assert {f"train/loss_okddip{s}" for s in ("", "_peer1", "_peer2", "_peer3")} <= set(runner.callback_metrics)


class Tokens(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        ids = (torch.arange(6) * (number + 1)) % 20
        return {"input_ids": ids, "attention_mask": (ids != 7).long(), "labels": torch.tensor(number % 3)}


@pytest.mark.parametrize("kind", ["one", "okddip"])
def test_branches_of_a_transformers_model(kind: str, trainer: Any) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    student = transformers_model(model_type="bert", config={**sizes, "intermediate_size": 8, "num_labels": 3})
    split = "bert.encoder.layer.0"
    strategy = ONE(split) if kind == "one" else OKDDip(split, branches=3)
    module = OnlineDistillation(student, task=Classification(3), strategy=strategy)
    data = torch.utils.data.DataLoader(Tokens(), 4)
    unread = Unread()
    callbacks = [FeatureKD(FitNet(relu=False), {"hidden_states.2": "hidden_states.2"}), unread]
    runner = trainer(max_epochs=2, callbacks=callbacks)
    runner.fit(module, data, data)
    assert all(torch.isfinite(value) for value in runner.callback_metrics.values())
    assert unread.names == []


def test_branches_of_a_vision_transformer(trainer: Any, loader: Any) -> None:
    student = timm_model("test_vit", num_classes=5, in_chans=1, options={"img_size": 8, "patch_size": 4})
    module = OnlineDistillation(student, task=Classification(5), strategy=ONE("blocks.3"))
    unread = Unread()
    runner = trainer(callbacks=[FeatureKD(AT(), {"blocks.5": "blocks.5"}), unread])
    runner.fit(module, loader(), loader())
    assert all(torch.isfinite(value) for value in runner.callback_metrics.values())
    assert unread.names == []
    # The gate reads the mean of the tokens at the split.
    assert module.strategy.parts["scores"].in_features == student.embed_dim


@pytest.mark.parametrize("averaged", [False, True])
def test_a_branch_out_of_a_checkpoint_is_complete(
    averaged: bool, net: Any, loader: Any, trainer: Any, tmp_path: Any
) -> None:
    module = OnlineDistillation(net(4, 0), task=Classification(5), strategy=STRATEGIES["one"]())
    runner = trainer(max_epochs=2, callbacks=[EMA(0.5)] if averaged else [])
    runner.fit(module, loader())
    path = tmp_path / "run.ckpt"
    runner.save_checkpoint(path)
    x, _ = next(iter(loader()))
    module.eval()
    with torch.no_grad():
        expected = run(module, x)[1]
        for which, logits in zip(module.networks, expected, strict=True):
            found = load_student(path, net(4, 7), which=which)
            torch.testing.assert_close(found(x), logits, rtol=0, atol=1e-6)
    again = OnlineDistillation(net(4, 5), task=Classification(5), strategy=STRATEGIES["one"]())
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in again.state_dict().items())
    rows = trainer().predict(again, loader())
    assert [row["prediction"] for row in rows[0]] == expected[0].argmax(1).tolist()
    with pytest.raises(ConfigurationError, match="does not say how to build the peer2"):
        load_student(path, which="peer2")
    with pytest.raises(ConfigurationError, match="holds no 'peer3': its networks are student, peer1, peer2"):
        load_student(path, net(4, 7), which="peer3")


def test_a_class_token_out_of_an_average_is_the_students(loader: Any, trainer: Any, tmp_path: Any) -> None:
    def vit() -> nn.Module:
        return timm_model("test_vit", num_classes=5, in_chans=1, options={"img_size": 8, "patch_size": 4})

    module = OnlineDistillation(vit(), task=Classification(5), strategy=CLILR("blocks.3", branches=2))
    runner = trainer(callbacks=[EMA(0.5)])
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    branch = load_student(tmp_path / "run.ckpt", vit(), which="peer1")
    assert torch.equal(branch.cls_token, module.student.cls_token)
    x, _ = next(iter(loader()))
    module.eval()
    with torch.no_grad(), module.strategy.running():
        module.student(x)
        torch.testing.assert_close(module.peers[0](x), branch(x), rtol=0, atol=1e-6)


def test_networks_of_their_own_are_not_mixed_with_the_students(
    net: Any, loader: Any, trainer: Any, tmp_path: Any
) -> None:
    module = OnlineDistillation(net(4, 0), [net(5, 1)], task=Classification(5))
    runner = trainer()
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    found = load_student(tmp_path / "run.ckpt", net(5, 7), which="peer1")
    assert all(torch.equal(v, module.peers[0].state_dict()[k]) for k, v in found.state_dict().items())


NETWORK_OPTIONS: Sequence[tuple[Callable[[], Any], str]] = [
    (lambda: ONE("stages.0", branches=1), "ONE: branches must be at least 2 and whole, not 1"),
    (lambda: CLILR("stages.0", branches=0), "CLILR: branches must be at least 2 and whole, not 0"),
    (lambda: OKDDip("stages.0", branches=2), "OKDDip: branches must be at least 3 and whole, not 2"),
    (lambda: ONE("stages.0", temperature=0.0), "ONE: temperature must be above 0"),
    (lambda: CLILR("stages.0", temperature=-1.0), "CLILR: temperature must be above 0"),
    (lambda: OKDDip(temperature=0.0), "OKDDip: temperature must be above 0"),
    (lambda: OKDDip(factor=0), "OKDDip: factor must be at least 1"),
    (lambda: OKDDip(factor=1.5), "OKDDip: factor must be at least 1 and whole, not 1.5"),
    (lambda: ONE("stages.0", branches=3.0), "ONE: branches must be at least 2 and whole, not 3.0"),
    (lambda: ONE(None), "ONE: split must name the last shared module"),
    (lambda: CLILR(None), "CLILR: split must name the last shared module"),
    (lambda: OKDDip(""), "OKDDip: split must name the last shared module"),
]


@pytest.mark.parametrize(("build", "message"), NETWORK_OPTIONS)
def test_bad_options_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_what_does_not_fit_together_is_refused(net: Any, name: str) -> None:
    task = Classification(5)
    with pytest.raises(ConfigurationError, match="makes the peers of the student: leave peers out"):
        OnlineDistillation(net(4, 0), [net(4, 1)], task=task, strategy=STRATEGIES[name]())
    with pytest.raises(ConfigurationError, match="compares class probabilities"):
        OnlineDistillation(net(4, 0), task=MultiLabel(5), strategy=STRATEGIES[name]())
    strategy = STRATEGIES[name]()
    OnlineDistillation(net(4, 0), task=task, strategy=strategy)
    with pytest.raises(ConfigurationError, match="has branches already: build one for each student"):
        OnlineDistillation(net(4, 0), task=task, strategy=strategy)
    strategy = STRATEGIES[name]()
    strategy.split = "stage.0"
    with pytest.raises(ConfigurationError, match=r"split: the student has no module 'stage.0'; did you mean stages"):
        OnlineDistillation(net(4, 0), task=task, strategy=strategy)


def test_okddip_needs_two_peers(net: Any) -> None:
    with pytest.raises(ConfigurationError, match="OKDDip needs at least 3 networks, the student included, not 2"):
        OnlineDistillation(net(4, 0), [net(4, 1)], task=Classification(5), strategy=OKDDip())
    with pytest.raises(ConfigurationError, match="peers is empty"):
        OnlineDistillation(net(4, 0), task=Classification(5), strategy=OKDDip())


def test_the_gate_says_that_it_cannot_train_on_one_sample(net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(4, 0), task=Classification(5), strategy=STRATEGIES["one"]())
    with pytest.raises(ValueError, match="ONE's gate normalises over the batch and cannot train on a single sample"):
        trainer().fit(module, loader(1))


@pytest.mark.parametrize("strategy", ["one", "okddip"])
def test_a_test_follows_a_fit_in_double_precision(strategy: str, net: Any, loader: Any, trainer: Any) -> None:
    module = OnlineDistillation(net(4, 0), task=Classification(5), strategy=STRATEGIES[strategy]())
    runner = trainer(precision="64-true")
    runner.fit(module, loader())
    assert "test/acc_ensemble" in runner.test(module, loader(), verbose=False)[0]
    trainer(precision="64-true").fit(module, loader())


def test_lightnings_averaging_would_miss_the_gate(net: Any, loader: Any, trainer: Any) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module = OnlineDistillation(net(4, 0), task=Classification(5), strategy=STRATEGIES["one"]())
    with pytest.raises(ConfigurationError, match="use kdlightning.callbacks.EMA"):
        trainer(callbacks=[EMAWeightAveraging(decay=0.5)]).fit(module, loader())
