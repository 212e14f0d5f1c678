"""Branches of one trunk, of networks of several libraries, against full networks that hold the same weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import ConfigurationError, ConvNet, ResNet1d, timm_model, transformers_model
from kdlightning.models.branches import make_branches
from kdlightning.models.output import ModelOutput
from kdlightning.models.trunk import Recall, Trunk
from kdlightning.taps import TapReader

Maker = Callable[[], nn.Module]


def bert(**config: Any) -> nn.Module:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {"intermediate_size": 8, "num_labels": 4, "initializer_range": 0.5, **sizes, **dropout, **config}
    return transformers_model(model_type="bert", config=config)


def vit(**options: Any) -> nn.Module:
    return timm_model("test_vit", num_classes=4, options={"img_size": 32, **options})


def resnet18() -> nn.Module:
    return timm_model("resnet18", num_classes=4, options={"channels": (8, 8, 16, 16)})


NETWORKS: dict[str, tuple[Maker, str, Any, str]] = {
    "convnet": (lambda: ConvNet(4, widths=(3, 5, 6)), "stages.1", (3, 1, 8, 8), "stages.0"),
    "convnet_inside": (lambda: ConvNet(4, widths=(3, 5), depth=2), "stages.1.1", (3, 1, 8, 8), "stages.1.0"),
    "resnet1d": (lambda: ResNet1d(4, widths=(3, 5), depth=1), "stages.0", (3, 1, 16), "stem"),
    "resnet18": (resnet18, "layer3", (2, 3, 32, 32), "layer1"),
    "vit": (vit, "blocks.2", (3, 3, 32, 32), "blocks.0"),
    "vit_scales": (lambda: vit(init_values=0.1), "blocks.3", (3, 3, 32, 32), "patch_embed"),
    "bert": (bert, "bert.encoder.layer.1", None, "bert.embeddings"),
}
"""Maker, split, shape of the inputs (tokens if None), and another module of the trunk."""


class Case:
    """A network, its branches, inputs, and full networks that hold the branches' weights."""

    def __init__(self, name: str, count: int = 3, **options: Any) -> None:
        make, self.split, shape, self.early = NETWORKS[name]
        torch.manual_seed(1)
        self.network = make().double()
        self.before = copy.deepcopy(self.network.state_dict())
        self.plain = copy.deepcopy(self.network)
        self.trunk, self.branches = make_branches(self.network, self.split, count, **options)
        if shape is None:
            mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
            self.inputs: Any = {"input_ids": torch.randint(20, (3, 5)), "attention_mask": mask}
        else:
            self.inputs = torch.randn(shape, dtype=torch.float64)

    @property
    def all(self) -> list[nn.Module]:
        return [self.network, *self.branches]

    def run(self) -> list[Tensor]:
        with self.trunk.running():
            return [answer(network, self.inputs) for network in self.all]

    def full(self) -> list[nn.Module]:
        """Full networks with the branches' weights, that share the modules in front of the split by hand."""
        networks = []
        for network in self.all:
            whole = copy.deepcopy(self.plain)
            whole.load_state_dict(self.network.state_dict() | network.state_dict())
            networks.append(whole.train(network.training))
        return networks


def answer(network: nn.Module, inputs: Any) -> Tensor:
    return network(**inputs).logits if isinstance(inputs, dict) else network(inputs)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_answers_are_those_of_full_networks(case: Case) -> None:
    expected = [answer(network, case.inputs) for network in case.full()]
    found = case.run()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


def test_gradients_are_sums_over_the_branches(case: Case) -> None:
    full = case.full()
    weights = [torch.randn(answer(full[0].eval(), case.inputs).shape, dtype=torch.float64) for _ in full]
    full = case.full()
    sum((w * z).sum() for w, z in zip(weights, case.run(), strict=True)).backward()
    for network, weight in zip(full, weights, strict=True):
        (weight * answer(network, case.inputs)).sum().backward()
    trunk = {name for name, _ in case.network.named_parameters()}
    for branch, network in zip(case.branches, full[1:], strict=True):
        own = dict(branch.named_parameters())
        trunk -= set(own)
        theirs = dict(network.named_parameters())
        for name, parameter in own.items():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-10)
    assert trunk
    parts = [dict(network.named_parameters()) for network in full]
    for name, parameter in case.network.named_parameters():
        if name in trunk:
            expected = sum(part[name].grad for part in parts)
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-10)
        else:
            torch.testing.assert_close(parameter.grad, parts[0][name].grad, rtol=1e-8, atol=1e-10)


def test_the_gradient_into_the_trunk_is_scaled() -> None:
    whole, third = Case("convnet"), Case("convnet", gradient_scale=1 / 3)
    for one in (whole, third):
        one.inputs = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).view(3, 1, 8, 8)
        sum(z.square().sum() for z in one.run()).backward()
    names = {name for name, _ in whole.branches[0].named_parameters()}
    for (name, ours), (_, theirs) in zip(
        third.network.named_parameters(), whole.network.named_parameters(), strict=True
    ):
        factor = 1.0 if name in names else 1 / 3
        torch.testing.assert_close(ours.grad, theirs.grad * factor, rtol=1e-10, atol=1e-14)


def test_the_trunk_runs_once_and_what_is_behind_once_for_each(case: Case) -> None:
    calls: list[str] = []
    for name in (case.split, case.early):
        case.network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    behind = [list(network.named_modules())[-1][0] for network in case.all]
    for number, (network, name) in enumerate(zip(case.all, behind, strict=True)):
        network.get_submodule(name).register_forward_hook(lambda *_, number=number: calls.append(str(number)))
    case.run()
    assert sorted(calls) == sorted([case.split, case.early, "0", "1", "2"])
    case.run()
    assert len(calls) == 10


def test_copies_are_drawn_anew_from_what_the_library_draws_from(case: Case) -> None:
    for name, value in case.network.state_dict().items():
        assert torch.equal(value, case.before[name])
    states = [network.state_dict() for network in case.all]
    for name, first in states[1].items():
        for other in (states[0][name], states[2][name]):
            torch.testing.assert_close(first.flatten().sort()[0], other.flatten().sort()[0], rtol=0, atol=0)
            if bool((first == first.flatten()[0]).all()):
                assert torch.equal(first, other)
            elif first.is_floating_point() and first.numel() > 10:  # a few numbers may fall into the same order
                assert not torch.equal(first, other), name
    again = make_branches(copy.deepcopy(case.plain), case.split, 2)[1][0]
    torch.manual_seed(5)
    first = make_branches(copy.deepcopy(case.plain), case.split, 2)[1][0]
    torch.manual_seed(5)
    second = make_branches(copy.deepcopy(case.plain), case.split, 2)[1][0]
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for (_, ours), theirs in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_trunk_is_the_students_alone(case: Case) -> None:
    """No branch has a tensor of the trunk, in its parameters or in its state."""
    module = nn.ModuleList(case.all)
    whole = case.network.state_dict()
    own = [set(branch.state_dict()) for branch in case.branches]
    assert own[0] == own[1] < set(whole)
    assert not any(name.startswith((f"{case.early}.", f"{case.split}.", "cls_token", "pos_embed")) for name in own[0])
    assert len(list(module.parameters())) == sum(len(list(network.parameters())) for network in case.all)
    for branch in case.branches:
        branch.load_state_dict(branch.state_dict())


def test_moving_and_casting_keep_the_sharing(case: Case) -> None:
    module = nn.ModuleList(case.all).float()
    if not isinstance(case.inputs, dict):
        case.inputs = case.inputs.float()
    for ours, network in zip(case.run(), case.full(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, answer(network.float(), case.inputs), rtol=1e-4, atol=1e-5)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_all_is_complete_and_apart(case: Case, how: str) -> None:
    together = (case.trunk, nn.ModuleList(case.all))
    trunk, networks = copy.deepcopy(together) if how == "deepcopy" else pickle.loads(pickle.dumps(together))
    expected = [z.detach() for z in case.run()]
    theirs = {id(tensor) for tensor in (*together[1].parameters(), *together[1].buffers())}
    assert not any(id(tensor) in theirs for tensor in (*networks.parameters(), *networks.buffers()))
    with torch.no_grad():
        for parameter in case.network.parameters():
            parameter.zero_()
    with trunk.running():
        found = [answer(network, case.inputs) for network in networks]
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)
    sum(z.square().sum() for z in found).backward()
    assert all(parameter.grad is None for parameter in together[1].parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_branch_that_is_called_alone_leaves_no_trace(case: Case, training: bool) -> None:
    for network in case.all:
        network.train(not training)
    branch, full = case.branches[0].train(training), case.full()[1].train(training)
    before = copy.deepcopy(case.network.state_dict())
    found = answer(branch, case.inputs)
    torch.testing.assert_close(found, answer(full, case.inputs), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in case.network.state_dict().items())
    assert all(module.training is not training for module in case.network.modules())
    found.square().sum().backward()
    assert case.network.get_submodule(case.early).training is not training
    assert any(parameter.grad is not None for parameter in case.network.parameters())


def test_running_statistics_of_the_trunk_move_once() -> None:
    case = Case("convnet")
    full = case.full()[0]
    full(case.inputs)
    case.run()
    for ours, theirs in zip(case.network.buffers(), full.buffers(), strict=True):
        assert torch.equal(ours, theirs)


TAPS = {
    "convnet": ["stages.2", "stages.1", "pre_logits", "logits"],
    "resnet1d": ["stages.1", "stages.1.act:input", "pre_logits"],
    "resnet18": ["layer4", "layer4.0.conv1", "intermediates.4", "pre_logits"],
    "vit": ["blocks.3", "blocks.4.attn", "intermediates.5", "intermediates.0", "pre_logits"],
    "bert": ["hidden_states.3", "hidden_states.1", "hidden_states.0", "bert.encoder.layer.2", "pre_logits"],
}


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", TAPS)
def test_taps_of_a_branch_are_the_full_networks(name: str, learns: bool) -> None:
    case = Case(name, count=2)
    for network in case.all:
        network.train(learns)
    readers = [TapReader(network, TAPS[name]) for network in case.all]
    before = copy.deepcopy(case.network.state_dict())
    infos = [reader.probe(case.inputs) for reader in readers]
    assert all(torch.equal(value, before[key]) for key, value in case.network.state_dict().items())
    full = [TapReader(network, TAPS[name]) for network in case.full()]
    assert infos == [reader.probe(case.inputs) for reader in full]
    expected: list[ModelOutput] = [reader(case.inputs) for reader in full]
    with case.trunk.running():
        found = [reader(case.inputs) for reader in readers]
    for ours, theirs in zip(found, expected, strict=True):
        for tap in TAPS[name]:
            torch.testing.assert_close(ours.taps[tap], theirs.taps[tap], rtol=1e-10, atol=1e-12)
    for reader in (*readers, *full):
        reader.close()


def test_attentions_of_a_branch_are_refused() -> None:
    case = Case("bert")
    with pytest.raises(ConfigurationError, match="attentions: a branch does not run"):
        TapReader(case.branches[0], ["attentions.2"])


def test_a_tied_head_stays_tied_to_the_trunk() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.body(self.embedding(tokens)))

    network = Tied()
    trunk, (branch,) = make_branches(network, "embedding", 2)
    assert branch.head.weight is network.embedding.weight
    assert sorted(branch.state_dict()) == ["body.bias", "body.weight", "head.bias"]
    tokens = torch.tensor([1, 2])
    with trunk.running():
        first, second = network(tokens), branch(tokens)
    assert not torch.equal(first, second)


def test_what_is_frozen_is_not_drawn_anew() -> None:
    network = ConvNet(4, widths=(3, 5))
    network.stages[1][0].weight.requires_grad_(False)
    _, (branch,) = make_branches(network, "stages.0", 2)
    assert torch.equal(branch.stages[1][0].weight, network.stages[1][0].weight)
    assert not branch.stages[1][0].weight.requires_grad
    assert not torch.equal(branch.fc.weight, network.fc.weight)


def test_statistics_of_a_branch_begin_anew() -> None:
    network = ConvNet(4, widths=(3, 5))
    network(torch.randn(4, 1, 8, 8))
    _, (branch,) = make_branches(network, "stages.0", 2)
    assert branch.stages[1][1].num_batches_tracked == 0
    assert torch.equal(branch.stages[1][1].running_mean, torch.zeros(5))


def test_a_recall_passes_for_what_it_stands_for() -> None:
    case = Case("vit")
    recall = case.branches[0].blocks[0]
    assert type(recall) is Recall
    assert isinstance(recall, type(case.network.blocks[0]))
    assert recall.attn is case.network.blocks[0].attn
    assert not hasattr(recall, "no_such_thing")
    assert "no_such_thing" not in repr(case.branches[0])


def run_both(trunk: Trunk, *networks: nn.Module) -> None:
    with trunk.running():
        for network in networks:
            network(torch.randn(2, 4))


class Odd(nn.Module):
    """Runs its modules in an order of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order.split():
            x = getattr(self, name)(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("order", "split", "message"),
    [
        ("first first second third", "second", "'first' stands before 'second' and runs twice"),
        ("second first third", "second", "'first' stands before 'second' and runs after it"),
        ("second third", "second", "'first' did not run in the student's pass"),
        ("first act second third", "first", "'first' gives is overwritten in place"),
    ],
)
def test_a_split_that_cannot_be_is_refused(order: str, split: str, message: str) -> None:
    network = Odd(order)
    trunk, (branch,) = make_branches(network, split, 2)
    if "did not run" in message:
        branch.order = "first second third"
    with pytest.raises(ConfigurationError, match=message):
        run_both(trunk, network, branch)
    assert trunk.kept is None


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("stages.1", 1, "branches must be at least 2, not 1"),
        ("stages.7", 2, "no module 'stages.7'; did you mean stages.1"),
        ("", 2, "no module ''"),
        ("fc", 2, "nothing is left to learn behind 'fc'"),
    ],
)
def test_bad_options_are_one_sentence(split: str, count: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_branches(ConvNet(4, widths=(3, 5)), split, count)


def test_nothing_behind_the_split_counts_parameters_of_its_parents() -> None:
    with pytest.raises(ConfigurationError, match="nothing is left to learn behind 'head'"):
        make_branches(vit(), "head", 2)


class Activations(nn.Module):
    """One activation for all places, as torchvision has it, and layers in a list."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.act, self.drop = nn.ReLU(inplace=inplace), nn.Dropout(0.5)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.split, self.rest, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(self.act(self.rest(self.split(self.drop(x)).sigmoid())))


def test_modules_without_state_run_once_in_front_of_the_split_and_behind_it_for_each() -> None:
    network = Activations()
    trunk, (branch,) = make_branches(network, "split", 2)
    calls: list[str] = []
    network.act.register_forward_hook(lambda *_: calls.append("act"))
    network.drop.register_forward_hook(lambda *_: calls.append("drop"))
    inside: list[Tensor] = []
    branch.rest.register_forward_hook(lambda m, i, o: inside.append(i[0]))
    network.rest.register_forward_hook(lambda m, i, o: inside.append(i[0]))
    with trunk.running():
        first, second = network(torch.randn(5, 4)), branch(torch.randn(5, 4))
    # Twice in the trunk and once behind it, then once for the branch; one dropout mask for all.
    assert calls == ["act", "act", "drop", "act", "act"]
    assert torch.equal(inside[0], inside[1])
    (first.sum() + second.sum()).backward()
    assert all(parameter.grad is not None for parameter in (*network.parameters(), *branch.parameters()))


def test_a_branch_that_writes_into_the_trunks_answers_is_refused() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x += 1
            return self.head(self.second(x))

    network = Adds()
    trunk, (branch,) = make_branches(network, "second", 2)
    with pytest.raises(ConfigurationError, match="'first' gives is overwritten in place"):
        run_both(trunk, network, branch)
